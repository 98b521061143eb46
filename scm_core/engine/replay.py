"""Evaluations of a network on a GPU without the launches of its kernels: CUDA graphs.

A forward of a few milliseconds is bound by launching some hundred kernels, not by them. For
arguments of one shape they are recorded once and then replayed by a single launch.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from scm_core.contract.fields import Condition
from scm_core.engine.compilation import is_compiled
from scm_core.method.samplers import Model

KEPT = 8  # recordings, each of one shape; the one used longest ago makes room
WARMUP = 2  # evaluations before a recording, in which libraries choose their kernels


class Replayed:
    """A model like any other, `F = model(x, t, condition)`, replayed from a shape's second use on.

    On a CPU, for gradients, of a compiled network, and where `model` cannot be recorded since it
    waits for the device, it is `model` itself. That evaluates `network`, whose weights have to stay
    where they are; those that autocast casts at every evaluation are cast once and for all.
    """

    def __init__(self, model: Model, network: nn.Module) -> None:
        self.model, self.network, self.possible = model, network, True
        self.uses: Counter = Counter()
        self.recordings: OrderedDict[Any, Recording] = OrderedDict()

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        as_it_is = torch.is_grad_enabled() or condition is None or is_compiled(self.network)
        if as_it_is or not x.is_cuda or not self.possible:
            return self.model(x, t, condition)
        given = {"x": x, "t": t, **condition}
        shape = tuple((key, value.shape, value.dtype) for key, value in given.items())
        self.uses[shape] += 1
        if self.uses[shape] > 1 and shape not in self.recordings:
            self._record(shape, x, t, condition)
        if shape not in self.recordings:
            return self.model(x, t, condition)
        self.recordings.move_to_end(shape)
        return self.recordings[shape](x, t, condition)

    def _record(self, shape: Any, *arguments: Any) -> None:
        cast_once(self.network, lambda: self.model(*arguments))
        try:
            self.recordings[shape] = Recording(self.model, arguments)
        except RuntimeError:  # CUDA's, of an operation that a stream which records cannot do
            self.possible = False
        if len(self.recordings) > KEPT:
            self.recordings.popitem(last=False)


class Recording:
    """One evaluation of `model`, for arguments like these."""

    def __init__(self, model: Model, arguments: tuple[Tensor, Tensor, Condition]) -> None:
        """Record it; RuntimeError where it does what cannot be recorded."""
        self.arguments = pytree.tree_map(torch.clone, arguments)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUP):
                model(*self.arguments)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may go on, such as one that decodes.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.out = model(*self.arguments)

    def __call__(self, *arguments: Any) -> Tensor:
        pytree.tree_map(Tensor.copy_, self.arguments, arguments)
        self.graph.replay()
        return self.out.clone()


class Readers(TorchDispatchMode):
    """Notes what reads each of some tensors: the dtype of a cast, or None for all else."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.known = {id(tensor) for tensor in tensors}
        self.found: dict[int, set[torch.dtype | None]] = defaultdict(set)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        cast = kwargs.get("dtype") if func is torch.ops.aten._to_copy.default else None
        for leaf in pytree.tree_leaves((args, kwargs)):
            if id(leaf) in self.known:
                self.found[id(leaf)].add(cast)
        return func(*args, **kwargs)


@torch.no_grad()
def cast_once(network: nn.Module, evaluate: Callable[[], object]) -> None:
    """Store in half precision those parameters that `evaluate` reads in it alone.

    Autocast casts them anew at every evaluation: of a large network and a small batch that would be
    most of the memory read. The results stay what they were, bit for bit.
    """
    parameters = list(network.parameters())
    with torch.compiler.set_stance("force_eager"), Readers(parameters) as readers:
        evaluate()
    for parameter in parameters:
        readings = readers.found[id(parameter)]
        if len(readings) == 1 and (dtype := readings.pop()) and dtype.itemsize == 2:
            parameter.data = parameter.data.to(dtype)
