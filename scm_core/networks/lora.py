"""Low-rank adapters on any network, by peft: several models that share one copy of the weights.

LoRA (Hu et al. 2021, arXiv 2106.09685): a layer with the frozen weights W computes with
`W + (alpha / rank) B A`, of which A and B alone are trained. B starts at zero, so that an adapter
starts as the network itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import noop_context_fn

from scm_core.base.errors import UserError
from scm_core.base.files import fingerprint
from scm_core.networks.layers.patch import Conv3d

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NEEDS = "student.lora.rank needs the package peft: pip install 'scm-core[lora]'"
A, B = ".lora_A.weight", ".lora_B.weight"  # behind a layer's name, as diffusers writes them


def check(rank: int | None, alpha: float | None, targets: list[str] | None) -> None:
    """UserError for what no adapter has, or has without a rank, and where peft is missing."""
    if rank is None:
        if alpha is not None or targets:
            raise UserError("student.lora.* without a rank changes nothing: give student.lora.rank")
        return
    if rank < 1:
        raise UserError(f"student.lora.rank={rank} must be at least 1")
    if alpha is not None and not 0 < alpha < float("inf"):
        raise UserError(f"student.lora.alpha={alpha} must be a number above 0")
    if importlib.util.find_spec("peft") is None:
        raise UserError(NEEDS)


class Adapters:
    """The adapters of a network, whose own weights are frozen from here on.

    `targets` are the ends of the names of the layers that have them, by default all that can; an
    `alpha` of None is the rank. UserError where no layer has such a name. `on` is where the names
    of those that are on are kept, `slowed` the modules in whose place others compute while any is:
    they have none.
    """

    def __init__(
        self,
        network: nn.Module,
        rank: int,
        alpha: float | None = None,
        targets: Sequence[str] = (),
        on: list[str] | None = None,
        slowed: Collection[str] = (),
    ) -> None:
        self.network, self.rank, self.alpha = network.requires_grad_(False), rank, alpha or rank
        self.base = fingerprint(network.state_dict())
        self.targets = targeted(network, targets, slowed)
        self.count = 0
        self.on = [] if on is None else on  # one object for all layers
        self.slow = bool(slowed)  # what is merged of it later has to be slowed too

    def off(self) -> Adapted:
        """The network as it was."""
        return Adapted(self, None)

    def new(self) -> Adapted:
        """The network with another adapter, which computes what the network does until trained."""
        from peft import LoraConfig, inject_adapter_in_model

        name, self.count = f"adapter{self.count}", self.count + 1
        exactly = "|".join(map(re.escape, self.targets))
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=exactly)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one already
            inject_adapter_in_model(config, self.network, name)
        for layer in self.layers.values():
            layer._active_adapter = self.on  # peft's own way to set it freezes the others as well
            layer.cast_input_dtype_enabled = False  # autocast does
        for parameter in trained:
            parameter.requires_grad_(True)
        return Adapted(self, name)

    @property
    def layers(self) -> dict[str, Any]:
        """peft's layers by their names in the network."""
        return {name: self.network.get_submodule(name) for name in self.targets}

    @contextlib.contextmanager
    def using(self, on: list[str], training: bool) -> Iterator[None]:
        """The network in that mode, within a `with` block with those adapters on."""
        if self.network.training != training:
            self.network.train(training)
        before, self.on[:] = self.on[:], on
        try:
            yield
        finally:
            self.on[:] = before

    def remembered(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """Contexts of activation checkpointing: now, and for what is computed once more later."""
        return contextlib.nullcontext(), self.using(self.on[:], self.network.training)


class Adapted(nn.Module):
    """A network with one of its adapters, or with none.

    Parameters and state are those of the adapter alone, under the names of their layers; whatever
    else is done to it (moved, put in a mode, called) is done to the network.
    """

    def __init__(self, adapters: Adapters, name: str | None) -> None:
        super().__init__()
        self._adapters, self._on = adapters, [name] if name else []
        for path, layer in adapters.layers.items() if name else ():
            *above, last = path.split(".")
            place: nn.Module = self
            for part in above:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            pair = {"lora_A": layer.lora_A[name], "lora_B": layer.lora_B[name]}
            place.add_module(last, nn.ModuleDict(pair))

    def forward(self, *arguments: Any, **more: Any) -> Any:
        with self._adapters.using(self._on, self.training):
            return self._adapters.network(*arguments, **more)

    def trainable_copy(self) -> Adapted:
        """Another adapter of the same network, in training."""
        return self._adapters.new().train()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapted:
        self._adapters.network._apply(fn, recurse)
        return self


def whole(model: nn.Module) -> nn.Module:
    """The network that a model evaluates, with all its weights: its own, or itself."""
    return model._adapters.network if isinstance(model, Adapted) else model


def context_fn(model: nn.Module) -> Callable[[], tuple]:
    """Of `torch.utils.checkpoint.checkpoint`, inside of that model."""
    return model._adapters.remembered if isinstance(model, Adapted) else noop_context_fn


def described(model: nn.Module) -> dict[str, Any] | None:
    """What `merged` has to know beside an adapter's weights, and of which network they are."""
    if not isinstance(model, Adapted):
        return None
    adapters = model._adapters
    found = {"base": adapters.base, "rank": adapters.rank, "alpha": float(adapters.alpha)}
    return {**found, "slow": True} if adapters.slow else found


def merged(weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict:
    """A network's weights with an adapter's added to them, `W + scale B A`.

    Raises KeyError, ValueError or RuntimeError for an adapter of another network.
    """
    found = dict(weights)
    for name in (key.removesuffix(A) for key in adapter if key.endswith(A)):
        given = found[f"{name}.weight"], adapter[name + A], adapter[name + B]
        plain, low, high = (w.to(torch.promote_types(w.dtype, torch.float32)) for w in given)
        if (len(high), *low.shape[1:]) != plain.shape:  # the product of two thin ones may be huge
            raise ValueError(f"{name} is another layer")
        # A convolution is one by A, then one of kernel 1 by B: at every place of its kernel B A.
        found[f"{name}.weight"] = plain + scale * (high.flatten(1) @ low.flatten(1)).view_as(plain)
    return found


def targeted(
    network: nn.Module, ends: Sequence[str] = (), without: Collection[str] = ()
) -> list[str]:
    """The names of the layers that can have an adapter and end in one of `ends`, or all."""
    inside = tuple(f"{name}." for name in without)
    known = [name for name in adaptable(network) if not name.startswith(inside)]
    if not known:
        raise UserError("student.lora.rank: no layer of this network can have an adapter")
    for end in ends:
        if not any(f".{name}".endswith(f".{end}") for name in known):
            names = sorted({name.rpartition(".")[2] for name in known})
            raise UserError(
                f"student.lora.targets: no layer is called {end}; {', '.join(names)} are"
            )
    return [n for n in known if not ends or any(f".{n}".endswith(f".{end}") for end in ends)]


def adaptable(network: nn.Module) -> list[str]:
    """The names of all linear layers and convolutions whose weights are theirs alone."""
    uses = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    inside = [f"{n}." for n, m in network.named_modules() if isinstance(m, nn.MultiheadAttention)]
    return [
        name
        for name, module in network.named_modules()
        if name
        and _plain(module)
        and uses[id(module.weight)] == 1
        and not name.startswith(tuple(inside))  # which reads their weights and never calls them
    ]


def _plain(module: nn.Module) -> bool:
    """Whether peft can make A and B of a layer's own kind, and merge them into its weights."""
    if parametrize.is_parametrized(module):
        return False
    if isinstance(module, CONVOLUTIONS):
        kind = next(one for one in CONVOLUTIONS if isinstance(module, one))
        usual = module.groups == 1 and set(module.dilation) == {1}
        own = type(module).__init__ is kind.__init__ and _calls(module, kind)
        return own and usual and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear) and _calls(module, nn.Linear)


def _calls(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it does with its weights what its kind does, so that W + B A is what was trained."""
    return type(module).forward in (kind.forward, Conv3d.forward)
