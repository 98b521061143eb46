"""What happens to a torch function without a rule: right and slow, counted, or refused."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from scm_core.dual.core import RULES, Dual, DualError, make, primal, spellings


class Fallbacks(Counter):
    """Operations without a rule, name -> calls, and how many `seconds` each name took in all."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter = Counter()


_counters: list[Fallbacks] = []


@contextmanager
def fallbacks() -> Iterator[Fallbacks]:
    """Count, while open, the operations that had no rule.

    A fallback is right but costs two extra forwards of that operation; `scm_core.dual.rule` removes
    it. Operations inside `torch.compile` are not counted. On CUDA the seconds are those of the
    launch.
    """
    counter = Fallbacks()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def fallback(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The primal with its graph, and forward-mode AD of this one operation without one.

    Raises DualError for a custom operator, for what torch cannot differentiate forward, and for an
    output without a tangent, which is never taken for zero.
    """
    name = _name(func)
    if torch.compiler.is_compiling():
        return _differentiate(name, func, args, kwargs)
    started = time.perf_counter()
    out = _differentiate(name, func, args, kwargs)
    for counter in _counters:
        counter[name] += 1
        counter.seconds[name] += time.perf_counter() - started
    return out


def _differentiate(name: str, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    # The primal first: without a graph, autocast would cache casts of the parameters without one.
    with _rewound_random_numbers(args, kwargs):
        out = func(*_map(primal, args), **_map(primal, kwargs))
    return _join(name, out, _forward_ad(func, args, kwargs))


def _name(func: Any) -> str:
    """The operation's name; raises DualError for a custom operator."""
    operator = str(getattr(func, "overloadpacket", func))
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        if not operator.startswith(("aten.", "prims.")):
            raise DualError(
                f"{operator} is a custom operator, whose forward derivative torch takes for zero: "
                "give it a rule with scm_core.dual.rule"
            )
        return operator
    return getattr(func, "__name__", operator)


def _rewound_random_numbers(*arguments: Any) -> AbstractContextManager:
    """Restore the generators afterwards, so that the tangent draws what the primal drew."""
    if torch.compiler.is_compiling():
        return nullcontext()
    devices = {leaf.device.index for leaf in _leaves(arguments) if getattr(leaf, "is_cuda", False)}
    return torch.random.fork_rng(devices)


def _forward_ad(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The tangents of `func`'s outputs, None where an output has none."""

    def lift(value: Any) -> Any:
        if isinstance(value, Dual):
            return forward_ad.make_dual(value.primal.detach(), value.tangent)
        return value

    def tangent(value: Any) -> Any:
        return forward_ad.unpack_dual(value).tangent if _differentiable(value) else None

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        try:
            return _map(tangent, func(*_map(lift, args), **_map(lift, kwargs)))
        except NotImplementedError as error:
            raise DualError(
                f"{_name(func)} has no rule and torch cannot differentiate it forward: "
                "give it a rule with scm_core.dual.rule"
            ) from error


def _join(name: str, out: Any, tangents: Any) -> Any:
    if isinstance(out, list | tuple):
        pairs = [_join(name, o, t) for o, t in zip(out, tangents, strict=True)]
        return type(out)(pairs)
    if not _differentiable(out):
        return out
    if tangents is None:
        raise DualError(
            f"{name} lost the tangent of its input: give it a rule with scm_core.dual.rule"
        )
    return make(out, lambda: tangents)


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _map(function: Any, tree: Any) -> Any:
    return pytree.tree_map(function, tree, is_leaf=lambda value: isinstance(value, Dual))


def _leaves(tree: Any) -> list[Any]:
    return pytree.tree_leaves(tree, is_leaf=lambda value: isinstance(value, Dual))


CONSTANT = """
eq ne lt le gt ge greater less equal allclose isclose isnan isinf isfinite argmax argmin argsort
sign floor ceil round trunc floor_divide bucketize searchsorted bernoulli
zeros_like ones_like full_like rand_like randn_like new_zeros new_ones new_full new_tensor
size dim ndimension numel nelement stride storage_offset element_size is_contiguous
is_floating_point is_complex is_signed get_device int long short bool
""".split()
"""Functions without a derivative: they see the primal and return plain tensors or numbers."""

REFUSED = "item tolist numpy backward register_hook requires_grad_ data_ptr untyped_storage".split()


def constant(func: Any, *args: Any, **kwargs: Any) -> Any:
    """`func` of the primals, without a graph."""
    return func(*_map(primal, args), **_map(primal, kwargs))


def refuse(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Raise DualError: the value would leave the computation without its tangent."""
    raise DualError(f"{func.__name__} would lose the tangent: keep the value a tensor")


def sgn(func: Any, x: Dual) -> Any:
    """Constant in pieces, but for complex numbers: of these it is x / |x|."""
    return fallback(func, (x,), {}) if x.is_complex() else func(x.primal)


def _register() -> None:
    RULES[None] = fallback
    RULES.update({func: partial(sgn, func) for func in spellings("sgn")})
    for implementation, names in ((constant, CONSTANT), (refuse, REFUSED)):
        for name in names:
            RULES.update({func: partial(implementation, func) for func in spellings(name)})


_register()
