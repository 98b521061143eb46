"""Dual: a value and its derivative along one direction, carried through an unmodified `nn.Module`.

A consistency step needs the network's output F with its graph and the tangent dF/dt without one
[sCM, arXiv 2410.11081, Algorithm 1]. Every torch function that meets a `Dual` is looked up in
`RULES`: the rule computes the primal as torch always does, and the tangent under `no_grad` from the
primal's own intermediates. One pass, no graph for the tangent, no second forward.
"""

from __future__ import annotations

import linecache
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from scm_core.dual import memory
from scm_core.dual.memory import DualError

RULES: dict[Any, Callable[..., Any]] = {}
"""Torch function -> rule; a rule has the function's own signature and gets `Dual`s in it.

Under None stands what takes every function without one, as `(func, args, kwargs)`, and under
"inplace" what takes a call with `inplace=True`.
"""


@dataclass(eq=False)
class Dual:
    """A tensor `primal` and its directional derivative `tangent`: same shape, dtype and device.

    It is a dataclass and a pytree node, so that DDP, FSDP2 and checkpointing see its tensors, and
    it has the methods and operators of `torch.Tensor`, so that a module cannot tell the difference.
    """

    primal: Tensor
    tangent: Tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Send any torch function that was handed a `Dual` to its rule."""
        return dispatch(func, args, kwargs or {})

    @property
    def __class__(self) -> type:
        """`Tensor` where a module asks `torch.is_tensor` or `isinstance`, so that it goes on alike.

        Nowhere else: torch's own code unpacks a `Dual` itself, and in C++ would crash on one.
        """
        frame = sys._getframe(1)
        asked = frame.f_code is torch.is_tensor.__code__
        frame = frame.f_back if asked else frame
        if frame.f_globals.get("__name__", "").partition(".")[0] == "torch":
            return Dual
        return Tensor if asked or _calls_isinstance(frame.f_code, frame.f_lasti) else Dual

    def __len__(self) -> int:
        return len(self.primal)

    def __iter__(self) -> Any:
        return iter(dispatch(torch.unbind, (self,), {}))

    def __bool__(self) -> bool:
        raise DualError(
            "a Dual has no truth value: branch on the shape or on a comparison, not on x"
        )

    def __float__(self) -> float:
        raise DualError("float(x) would lose the tangent: keep x a tensor")


@cache
def _calls_isinstance(code: types.CodeType, instruction: int) -> bool:
    """Whether the instruction at this offset is a call of `isinstance`, by the source of the call.

    C++ asks for the class of any argument just so, as in `torch.tensor(x)`.
    """
    line, _, column, _ = next(islice(code.co_positions(), instruction // 2, None))
    source = linecache.getline(code.co_filename, line or 0).encode()
    return source[column or 0 :].startswith(b"isinstance(")


pytree.register_pytree_node(
    Dual,
    lambda dual: ([dual.primal, dual.tangent], None),
    lambda leaves, _: Dual(*leaves),
    serialized_type_name="scm_core.dual.Dual",
)


def rule(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: register how `Dual` passes through `functions` (torch functions or custom ops).

    The decorated rule is called with the function's own arguments, some of them `Dual`, and returns
    `Dual(primal, tangent)`: the primal with its graph, the tangent computed under `torch.no_grad`.
    A Python function of yours takes part once it calls `torch.overrides.handle_torch_function`.
    """

    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            for spelling in _overloads(function):
                RULES[spelling] = implementation
        return implementation

    return register


def _overloads(function: Any) -> list[Any]:
    """The objects under which torch may hand one function over: a custom operator has several."""
    function = getattr(function, "_opoverload", function)
    packet = getattr(function, "overloadpacket", function)
    if isinstance(packet, torch._ops.OpOverloadPacket):
        return [packet, *(getattr(packet, overload) for overload in packet.overloads())]
    return [function]


def spellings(name: str) -> list[Any]:
    """Every object under which torch hands the function `name` to `__torch_function__`."""
    functions = (torch, torch._C._VariableFunctions, torch.special, torch._C._nn, F)
    found = [getattr(home, name) for home in (*functions, Tensor) if hasattr(home, name)]
    found = [f.__get__ if isinstance(f, types.GetSetDescriptorType) else f for f in found]
    return [f for f in found if callable(f)]  # torch.cpu is a module, torch.float a dtype


def dispatch(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Apply `func` to arguments of which at least one is a `Dual`, by its rule or by the fallback.

    Raises DualError where there is no right tangent.
    """
    for name in ("input", "tensors"):  # `torch.cat(tensors=...)`: rules want it in front
        if name in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop(name), *args)
    if "other" in kwargs:
        kwargs = dict(kwargs)
        args = (*args, kwargs.pop("other"))
    if memory.SHADOWS:
        if not memory.busy():
            with memory.working():
                return dispatch(func, args, kwargs)
        args, kwargs = current(args), current(kwargs)
    _check(func, kwargs)
    if kwargs.get("inplace"):
        return RULES["inplace"](func, args, kwargs)
    implementation = RULES.get(func)
    if implementation is None:
        return RULES[None](func, args, kwargs)
    return implementation(*args, **kwargs)


def current(value: Any) -> Any:
    """`value` with every tensor in it that was written in place as the `Dual` that it now is."""
    if isinstance(value, Dual):
        shadowed = memory.shadow(value.primal) is not None
        return Dual(value.primal, memory.read(value.primal, value.tangent)) if shadowed else value
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return value if memory.shadow(value) is None else Dual(value, memory.read(value))
    if type(value) in (list, tuple):
        items = [current(item) for item in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        return value if same else type(value)(items)
    if type(value) is dict:
        items = {key: current(item) for key, item in value.items()}
        return value if all(items[key] is value[key] for key in value) else items
    return value


def _check(func: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    name = getattr(func, "__name__", "")
    writes = name.endswith("_") and not name.endswith("__") and func not in RULES
    if writes or kwargs.get("out") is not None:
        raise DualError(
            f"{name} writes in place or changes a tensor, and has no rule: "
            "use the out-of-place form (x = x.transpose(0, 1), torch.cat, torch.where)"
        )
    if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _in_custom_function():
        raise DualError(
            f"{name} was called inside a torch.autograd.Function, which has no tangent and would "
            "cut the graph of F: write it in ordinary operations, or give a function of your own a "
            "rule with scm_core.dual.rule (for activation checkpointing: use_reentrant=False)"
        )


def _in_custom_function() -> bool:
    """Whether an `autograd.Function.forward` is on the stack: a `Dual` enters those unseen."""
    apply = torch.autograd.Function.apply.__func__.__code__
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is apply:
            return True
        frame = frame.f_back
    return False


def make(primal: Tensor, tangent: Callable[[], Tensor], *, autocast: bool = False) -> Dual:
    """`Dual` of a primal, which torch has computed, and a tangent without a graph, in its dtype.

    Autocast acts on the primal alone: what `tangent` computes, it computes in the dtypes that it is
    given, for autocast would raise some of them and not others, which kernels on CUDA refuse. With
    `autocast` it is left on, for a tangent that is the primal's very operation once more: that then
    casts its arguments as it did before, and finds the parameters already cast.
    """
    with torch.no_grad(), nullcontext() if autocast else _without_autocast(primal.device.type):
        value = tangent()
        if value.dtype != primal.dtype:
            value = value.to(primal.dtype)
        if value.shape != primal.shape:
            value = value.expand(primal.shape)
    return Dual(primal, value)


def _without_autocast(device: str) -> AbstractContextManager:
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def lift(y: Tensor, *tensors: Any) -> list[Any]:
    """Tensors in the dtype of y, to which autocast has raised or lowered an operation's result."""
    return [x if x is None else x.to(y.dtype) for x in tensors]


def primal(value: Any) -> Any:
    """`value` with every `Dual` in it, also inside lists and tuples, replaced by its primal."""
    if isinstance(value, Dual):
        return value.primal
    if isinstance(value, list | tuple) and any(isinstance(item, Dual) for item in value):
        return type(value)([primal(item) for item in value])
    return value


def jvp(
    module: Callable[..., Any],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    **kwargs: Any,
) -> tuple[Any, Any]:
    """`F = module(*primals, **kwargs)` with its graph, and `dF = J_F tangents` without one.

    Each tangent has its primal's shape; `kwargs` pass untouched. The call goes through
    `module.__call__`, so that the hooks of DDP and FSDP2 run. Where the module returns a tuple or a
    dict of tensors, so do both results. Raises ValueError for tangents that do not match and
    DualError for an operation without a right tangent. [sCM, Algorithm 1: tangent (c s dx/dt / sd,
    c s) at (x_t / sd, t).]
    """
    if len(primals) != len(tangents):
        raise ValueError(f"jvp: {len(primals)} primals but {len(tangents)} tangents")
    for x, dx in zip(primals, tangents, strict=True):
        if x.shape != dx.shape or not (x.is_floating_point() or x.is_complex()):
            raise ValueError(
                "jvp: primals must be floating-point, with tangents of the same shape; got "
                f"{x.dtype} {tuple(x.shape)} and {tuple(dx.shape)}"
            )
    duals = [Dual(x, dx.detach().to(x.dtype)) for x, dx in zip(primals, tangents, strict=True)]
    if torch.compiler.is_compiling():
        out = module(*duals, **kwargs)
        return _part(out, "primal"), _part(out, "tangent")
    with memory.scope():
        out = _call(module, duals, kwargs)
        with memory.working():
            out = current(out)
            return _part(out, "primal"), _part(out, "tangent")


def _call(module: Callable[..., Any], duals: list[Dual], kwargs: dict[str, Any]) -> Any:
    try:
        return module(*duals, **kwargs)
    except Exception as error:
        if "flex_attention" not in str(error) or isinstance(error, DualError):
            raise
        raise DualError(
            "flex_attention compiles itself, which no Dual can pass: use the function "
            "scaled_dot_product_attention (in diffusers network.set_attention_backend('native'))"
        ) from error


def _part(out: Any, name: str) -> Any:
    """The primals or the tangents of a module's output, in the output's own structure."""
    if isinstance(out, Dual):
        return getattr(out, name)
    if isinstance(out, list | tuple):
        parts = [_part(item, name) for item in out]
        return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)
    if isinstance(out, dict):
        return {key: _part(item, name) for key, item in out.items()}
    raise DualError(
        f"the module returned a {type(out).__name__} that does not depend on its inputs "
        "through operations that Dual sees: return tensors computed from x or t"
    )
