"""Rules of in-place writes: into a `Dual`, into a view of one, or into a plain tensor."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from scm_core.dual import memory
from scm_core.dual.core import RULES, Dual, DualError, current, dispatch, primal, spellings

WRITES = """
add sub mul div pow neg abs square exp expm1 log log1p sqrt rsqrt reciprocal sin cos tan tanh
sigmoid erf relu leaky_relu elu silu mish clamp clip clamp_min clamp_max lerp addcmul addcdiv addmm
baddbmm cumsum tril triu floor ceil round sign masked_fill masked_scatter index_add index_copy
index_fill index_put scatter scatter_add scatter_reduce
""".split()
"""`x.add_(y)` is `x.copy_(x.add(y))`; what is not here (`transpose_`, `normal_`) is refused."""

OPERATORS = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "ipow": "pow"}


class _Reader(TorchFunctionMode):
    """Hands plain tensors that a `Dual` was written into to the rules, as the `Dual`s they are."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        asks = getattr(func, "__name__", "") == "__get__" and func not in RULES  # x.shape
        if memory.SHADOWS and not memory.busy() and not asks:
            found = current(args), current(kwargs)
            if found[0] is not args or found[1] is not kwargs:
                return dispatch(func, *found)
        return func(*args, **kwargs)


def _ready(x: Any, name: str) -> Tensor:
    """The tensor to write into. Raises DualError where what reads it could not be told."""
    if torch.compiler.is_compiling():
        raise DualError(
            f"{name} writes in place, which Dual cannot follow in torch.compile: compile=false, or "
            "the out-of-place form (x = x + y, torch.cat, torch.where, inplace=False)"
        )
    if not isinstance(x, Dual) and not memory.watch(_Reader):
        raise DualError(
            f"{name} writes a Dual into a plain tensor outside of dual.jvp, as activation "
            "checkpointing does when it comes back: make the tensor by torch.empty_like(x)"
        )
    return primal(x)


def _written(x: Tensor, tangent: Any) -> Dual:
    """x, just written in place, with its new tangent."""
    with torch.no_grad():
        tangent = torch.zeros_like(x) if tangent is None else tangent.to(x.dtype).expand(x.shape)
        memory.write(x, tangent)
    return Dual(x, tangent)


def assign(name: str, x: Any, value: Any) -> Dual:
    """x[...] = value."""
    x0 = _ready(x, name)
    x0.copy_(primal(value))
    return _written(x0, value.tangent if isinstance(value, Dual) else None)


def update(name: str, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """x.f_(y): f out of place, by its rule, on a copy that the graph may keep; then the write."""
    if not x.is_floating_point() and not x.is_complex():
        return getattr(Tensor, name)(primal(x), *map(primal, args), **kwargs)
    _ready(x, name)
    old = Dual(x.primal.clone(), x.tangent) if isinstance(x, Dual) else x.clone()
    return assign(name, x, dispatch(func, (old, *args), kwargs))


def with_flag(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """F.relu(x, inplace=True)."""
    return update(func.__name__, func, *args, **{**kwargs, "inplace": False})


def setitem(x: Any, index: Any, value: Any) -> None:
    """x[index] = value, dx[index] = dvalue."""
    if not x.is_floating_point() and not x.is_complex():
        x[index] = primal(value)
        return
    x0 = _ready(x, "x[i] = y")
    with torch.no_grad():
        tangent = x.tangent.clone() if isinstance(x, Dual) else torch.zeros_like(x0)
        tangent[index] = value.tangent if isinstance(value, Dual) else 0
    x0[index] = primal(value)
    _written(x0, tangent)


def empty(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Memory that is made to be written into: a `Dual` from the start."""
    out = func(*map(primal, args), **kwargs)
    if not out.is_floating_point() and not out.is_complex():
        return out
    return Dual(out, torch.zeros((), dtype=out.dtype, device=out.device).expand(out.shape))


def _register() -> None:
    for name in WRITES:
        func = next(getattr(home, name) for home in (Tensor, F) if hasattr(home, name))
        rule = partial(update, f"{name}_", func)
        operators = [f"__{key}__" for key, value in OPERATORS.items() if value == name]
        for spelled in (f"{name}_", *operators):
            RULES.update(dict.fromkeys(spellings(spelled), rule))
    RULES[Tensor.__setitem__] = setitem
    RULES[Tensor.copy_] = lambda x, value, non_blocking=False: assign("copy_", x, value)
    RULES.update(dict.fromkeys(spellings("fill_"), partial(assign, "fill_")))
    RULES.update(dict.fromkeys(spellings("zero_"), lambda x: assign("zero_", x, torch.zeros(()))))
    RULES["inplace"] = with_flag
    for func in (f for name in ("empty_like", "new_empty") for f in spellings(name)):
        RULES[func] = partial(empty, func)


_register()
