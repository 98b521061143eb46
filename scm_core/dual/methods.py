"""The methods and operators of `torch.Tensor` on `Dual`, each through `dispatch`."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scm_core.dual.core import Dual, dispatch

_OPERATORS = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "truediv": torch.div,
    "pow": torch.pow,
    "matmul": torch.matmul,
    "mod": torch.remainder,
    "floordiv": torch.floor_divide,
}
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_VIEWS = ("T", "mT", "H", "mH", "real", "imag")
_FACTS = """shape dtype device ndim layout itemsize requires_grad is_cpu is_cuda is_mps is_meta
is_nested is_sparse is_quantized""".split()


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Dual, *args: Any, **kwargs: Any) -> Any:
        return dispatch(function, (self, *args), kwargs)

    return method


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Dual, other: Any) -> Any:
        return dispatch(function, (other, self), {})

    return method


def _fact(name: str) -> Callable[[Dual], Any]:
    return lambda self: getattr(self.primal, name)


def _add_tensor_methods() -> None:
    """Give `Dual` the methods and operators of `torch.Tensor`, each through `dispatch`."""
    for name in dir(Tensor):
        function = getattr(Tensor, name, None)
        if isinstance(function, types.FunctionType):  # written in Python, which compile stops at
            function = getattr(torch._C._VariableFunctions, name, function)
        if not name.startswith("_") and not hasattr(Dual, name) and callable(function):
            setattr(Dual, name, _method(function))
    for name, function in _OPERATORS.items():
        setattr(Dual, f"__{name}__", _method(function))
        setattr(Dual, f"__r{name}__", _reflected(function))
        if hasattr(Tensor, f"__i{name}__"):
            setattr(Dual, f"__i{name}__", _method(getattr(Tensor, f"__i{name}__")))
    for name in _COMPARISONS:
        setattr(Dual, f"__{name}__", _method(getattr(torch, name)))
    for name in _VIEWS:
        setattr(Dual, name, property(_method(getattr(Tensor, name).__get__)))
    for name in _FACTS:
        setattr(Dual, name, property(_fact(name)))
    for name in ("neg", "pos", "abs", "getitem", "setitem"):
        setattr(Dual, f"__{name}__", _method(getattr(Tensor, f"__{name}__")))


_add_tensor_methods()
