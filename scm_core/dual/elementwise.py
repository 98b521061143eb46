"""Rules of elementwise functions, softmax and dropout.

Where the Jacobian is symmetric (elementwise functions, softmax), torch's fused backward kernel *is*
the Jacobian-vector product: one pass over memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scm_core.dual.core import RULES, Dual, lift, make, primal, spellings
from scm_core.dual.fallback import fallback

aten = torch.ops.aten


def _clamp(x: Tensor, y: Tensor, dx: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.where(x == y, dx, 0.0)


# name -> tangent from (x, y = f(x), dx, the function's other arguments)
UNARY: dict[str, Callable[..., Tensor]] = {
    "exp": lambda x, y, dx: dx * y,
    "expm1": lambda x, y, dx: dx * (y + 1),
    "log": lambda x, y, dx: dx / x,
    "log1p": lambda x, y, dx: dx / (x + 1),
    "sqrt": lambda x, y, dx: (dx / y).mul_(0.5),
    "rsqrt": lambda x, y, dx: (y * y * y).mul_(dx).mul_(-0.5),
    "reciprocal": lambda x, y, dx: (y * y).mul_(dx).neg_(),
    "square": lambda x, y, dx: (x * dx).mul_(2),
    "abs": lambda x, y, dx: dx * x.sgn(),
    "sin": lambda x, y, dx: dx * x.cos(),
    "cos": lambda x, y, dx: (dx * x.sin()).neg_(),
    "tan": lambda x, y, dx: (y * y).add_(1).mul_(dx),
    "atan": lambda x, y, dx: dx / (x * x).add_(1),
    "tanh": lambda x, y, dx: aten.tanh_backward(dx, y),
    "sigmoid": lambda x, y, dx: aten.sigmoid_backward(dx, y),
    "logsigmoid": lambda x, y, dx: dx * torch.sigmoid(-x),
    "erf": lambda x, y, dx: (x * x).neg_().exp_().mul_(dx).mul_(2 / torch.pi**0.5),
    "relu": lambda x, y, dx, inplace=False: aten.threshold_backward(dx, x, 0),
    "silu": lambda x, y, dx, inplace=False: aten.silu_backward(dx, x),
    "mish": lambda x, y, dx, inplace=False: aten.mish_backward(dx, x),
    "gelu": lambda x, y, dx, approximate="none": aten.gelu_backward(dx, x, approximate=approximate),
    "softplus": lambda x, y, dx, beta=1, threshold=20: aten.softplus_backward(
        dx, x, beta, threshold
    ),
    "leaky_relu": lambda x, y, dx, negative_slope=0.01, inplace=False: aten.leaky_relu_backward(
        dx, x, negative_slope, False
    ),
    "elu": lambda x, y, dx, alpha=1.0, inplace=False: aten.elu_backward(dx, alpha, 1, 1, False, x),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
}
REAL = ("abs", "tanh", "sigmoid")  # of complex numbers these are not so
ALIASES = {"absolute": "abs", "__abs__": "abs", "arctan": "atan", "expit": "sigmoid"}


def unary(func: Any, name: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    """y = f(x), dy = f'(x) dx, in the dtype of y (autocast may have raised it)."""
    derivative = UNARY[name]
    others = any(isinstance(other, Dual) for other in (*args, *kwargs.values()))
    if others or (name in REAL and x.is_complex()):
        return fallback(func, (x, *args), kwargs)
    y = func(x.primal, *args, **kwargs)

    def tangent() -> Tensor:
        x0, dx = lift(y, x.primal, x.tangent)
        return derivative(x0, y, dx, *args, **kwargs)

    return make(y, tangent)


def add(func: Any, sign: int, a: Any, b: Any, *, alpha: Any = 1) -> Dual:
    """d(a + alpha b) = da + alpha db; a plain summand costs nothing."""

    def tangent() -> Tensor:
        if not isinstance(b, Dual):
            return a.tangent
        if not isinstance(a, Dual):
            scale = sign * alpha
            return b.tangent if scale == 1 else b.tangent * scale
        return torch.add(a.tangent, b.tangent, alpha=sign * alpha)

    return make(func(primal(a), primal(b), alpha=alpha), tangent)


def mul(a: Any, b: Any) -> Dual:
    """d(a b) = da b + a db."""
    x, y = primal(a), primal(b)

    def tangent() -> Tensor:
        if b is y:
            return a.tangent * y
        if a is x:
            return b.tangent * x
        return product(a.tangent, y, x, b.tangent)

    return make(torch.mul(x, y), tangent)


def product(da: Tensor, b: Tensor, a: Tensor, db: Tensor) -> Tensor:
    """da b + a db in two passes over memory."""
    first = da * b
    if first.dtype == a.dtype == db.dtype:
        return first.addcmul_(a, db)
    return first + a * db


def div(a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    """d(a / b) = (da - (a / b) db) / b."""
    x, y = primal(a), primal(b)
    out = torch.div(x, y, rounding_mode=rounding_mode)
    if rounding_mode is not None:
        return out

    def tangent() -> Tensor:
        if b is y:
            return a.tangent / y
        if a is x:
            return (out * b.tangent).div_(y).neg_()
        return (a.tangent - out * b.tangent) / y

    return make(out, tangent)


def power(base: Any, exponent: Any) -> Dual:
    """d(x^n) = n x^(n-1) dx + x^n log(x) dn, where x^0 and 0^n do not change."""
    x, n = primal(base), primal(exponent)
    y = torch.pow(x, n)

    def by_base() -> Tensor:
        x0 = x.to(y.dtype)
        slope = x0 * 2 if isinstance(n, int) and n == 2 else torch.pow(x0, n - 1) * n
        if isinstance(n, Tensor):
            slope = slope.masked_fill(n == 0, 0)
        elif n == 0:
            slope = torch.zeros_like(slope)
        return slope * base.tangent

    def by_exponent() -> Tensor:
        return torch.xlogy(y, x).masked_fill((n >= 0) & (x == 0), 0) * exponent.tangent

    def tangent() -> Tensor:
        if x is base:
            return by_exponent()
        return by_base() if n is exponent else by_base() + by_exponent()

    return make(y, tangent)


def lerp(a: Any, b: Any, weight: Any) -> Dual:
    """d(a + w (b - a)) = da + w (db - da) + dw (b - a)."""
    x, y, w = primal(a), primal(b), primal(weight)

    def tangent() -> Tensor:
        da = a.tangent if isinstance(a, Dual) else torch.zeros_like(x)
        db = b.tangent if isinstance(b, Dual) else torch.zeros_like(y)
        out = torch.lerp(da, db, w)
        return out + weight.tangent * (y - x) if isinstance(weight, Dual) else out

    return make(torch.lerp(x, y, w), tangent)


def addcmul(c: Any, a: Any, b: Any, *, value: Any = 1) -> Dual:
    """d(c + v a b) = dc + v (da b + a db), a pass over memory for each of the two."""
    z, x, y = primal(c), primal(a), primal(b)
    out = torch.addcmul(z, x, y, value=value)

    def tangent() -> Tensor:
        dc = c.tangent if isinstance(c, Dual) else torch.zeros_like(z)
        dy, x0, y0 = lift(out, dc, x, y)
        if isinstance(a, Dual):
            dy = torch.addcmul(dy, *lift(out, a.tangent), y0, value=value)
        return torch.addcmul(dy, x0, *lift(out, b.tangent), value=value) if b is not y else dy

    return make(out, tangent)


def softmax(func: Any, x: Dual, *args: Any, **kwargs: Any) -> Dual:
    """dy = y (dx - sum(y dx)): the backward kernel, for the Jacobian is symmetric."""
    y = func(x.primal, *args, **kwargs)
    dim = args[0] if args else kwargs["dim"]
    return make(y, lambda: aten._softmax_backward_data(x.tangent.to(y.dtype), y, dim, y.dtype))


def log_softmax(func: Any, x: Dual, *args: Any, **kwargs: Any) -> Dual:
    """dy = dx - sum(e^y dx): this Jacobian is not symmetric."""
    y = func(x.primal, *args, **kwargs)
    dim = args[0] if args else kwargs["dim"]

    def tangent() -> Tensor:
        dx = x.tangent.to(y.dtype)
        return dx - (y.exp() * dx).sum(dim, keepdim=True)

    return make(y, tangent)


def dropout(
    func: Any, x: Dual, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Dual:
    """The same mask on both, drawn as torch draws it for the primal alone."""
    if not training or p == 0.0:
        return x
    mask = func(torch.ones_like(x.primal, requires_grad=False), p, True)
    return make(x.primal * mask, lambda: x.tangent * mask)


def _register() -> None:
    for name in UNARY:
        names = [name, *(alias for alias, target in ALIASES.items() if target == name)]
        for func in (f for spelled in names for f in spellings(spelled)):
            RULES[func] = partial(unary, func, name)
    binary = {"mul": mul, "multiply": mul, "div": div, "divide": div, "true_divide": div}
    binary |= {"pow": power, "lerp": lerp, "addcmul": addcmul, "__pow__": power}
    for name, implementation in binary.items():
        RULES.update(dict.fromkeys(spellings(name), implementation))
    for name, sign in {"add": 1, "sub": -1, "subtract": -1}.items():
        func = torch.add if sign == 1 else torch.sub
        RULES.update(dict.fromkeys(spellings(name), partial(add, func, sign)))
    for name, implementation in {"softmax": softmax, "log_softmax": log_softmax}.items():
        RULES.update({func: partial(implementation, func) for func in spellings(name)})
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"):
        RULES.update({func: partial(dropout, func) for func in spellings(name)})
    RULES[Tensor.__rsub__] = lambda a, b: add(torch.sub, -1, b, a)
    RULES[Tensor.__rdiv__] = lambda a, b: div(b, a)
    RULES[Tensor.__rpow__] = lambda a, b: power(b, a)


_register()
