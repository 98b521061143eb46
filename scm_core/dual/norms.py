"""Rules of normalisations and of the statistics they are made of.

Without its affine part a normalisation has a symmetric Jacobian, so that its backward kernel, with
the mean and the standard deviation of the primal, is the Jacobian-vector product.
"""

from __future__ import annotations

import math
import types
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F

from scm_core.dual.core import RULES, Dual, DualError, lift, make, spellings
from scm_core.dual.fallback import fallback

aten = torch.ops.aten
_ONLY_INPUT = [True, False, False]


def layer_norm(
    x: Dual,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Dual:
    """y = w n + b with n = (x - mean) / std; dy = w J_n dx."""
    x0, dx, weight, bias = _raised(x, weight, bias)
    y, mean, rstd = torch.native_layer_norm(x0, shape, weight, bias, eps)

    def tangent() -> Tensor:
        both = (z.to(mean.dtype) for z in (dx, x0))  # bfloat16 has float32 statistics
        dn = aten.native_layer_norm_backward(*both, shape, mean, rstd, None, None, _ONLY_INPUT)[0]
        return dn if weight is None else dn.mul_(weight)

    return make(y, tangent)


def group_norm(
    x: Dual,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Dual:
    """As `layer_norm`, over groups of channels."""
    x0, dx, weight, bias = _raised(x, weight, bias)
    batch, channels, *grid = x0.shape
    sizes = (batch, channels, math.prod(grid), groups)
    # The kernels take tensors of one memory format, and on CUDA only the contiguous one.
    layout = torch.contiguous_format if x0.is_cuda else suggest_memory_format(x0)
    x0, dx = x0.contiguous(memory_format=layout), dx.contiguous(memory_format=layout)
    y, mean, rstd = torch.native_group_norm(x0, weight, bias, *sizes, eps)

    def tangent() -> Tensor:
        both = (z.to(mean.dtype) for z in (dx, x0))
        dn = aten.native_group_norm_backward(*both, mean, rstd, None, *sizes, _ONLY_INPUT)[0]
        return dn if weight is None else dn.mul_(weight.view(-1, *[1] * len(grid)))

    return make(y, tangent)


def rms_norm(x: Dual, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Dual:
    """y = w n with n = x / rms(x); dy = w (dx - n mean(n dx)) / rms(x), on a GPU in one kernel."""
    x0, dx, weight = _raised(x, weight)
    y, r = aten._fused_rms_norm(x0, shape, weight, eps)
    dims = tuple(range(-len(shape), 0))

    def tangent() -> Tensor:
        if x0.is_cuda:
            dn = aten._fused_rms_norm_backward(dx, x0, shape, r, None, [True, False])[0]
        else:
            projection = (x0 * dx).mean(dims, keepdim=True).mul_(r * r)
            dn = torch.addcmul(dx, x0, projection, value=-1).mul_(r)
        return dn if weight is None else dn.mul_(weight)

    return make(y, tangent)


def batch_norm(
    x: Dual,
    mean: Tensor,
    var: Tensor,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Dual:
    """Affine with running statistics; refused in train mode, where samples would mix."""
    if training:
        raise DualError(
            "BatchNorm in train mode mixes the samples of a batch, which a consistency model must "
            "not: use GroupNorm, LayerNorm or RMSNorm, or call eval() on it"
        )
    y = F.batch_norm(x.primal, mean, var, weight, bias, False, momentum, eps)

    def tangent() -> Tensor:
        scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
        return x.tangent * scale.view(-1, *[1] * (x.ndim - 2))

    return make(y, tangent)


def variance(
    func: Any,
    x: Dual,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Dual:
    """dvar = 2 / (n - correction) sum((x - mean) dx); dstd = dvar / (2 std), 0 where std is."""
    if isinstance(dim, bool):  # torch.var(x, unbiased)
        dim, unbiased = None, dim
    correction = float(unbiased) if correction is None else correction
    if x.is_complex():
        return fallback(func, (x, dim), {"correction": correction, "keepdim": keepdim})
    y = func(x.primal, dim, correction=correction, keepdim=keepdim)

    def tangent() -> Tensor:
        centred = x.primal - x.primal.mean(dim, keepdim=True)
        count = centred.numel() / max(y.numel(), 1) - correction
        dy = (centred * x.tangent).sum(dim, keepdim=keepdim).mul_(2 / count)
        return dy if func is torch.var else dy.div_(2 * y).masked_fill_(y == 0, 0)

    return make(y, tangent)


def norm(
    x: Dual, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None, out: None = None
) -> Dual:
    """Euclidean norm y = |x|: dy = sum(x dx) / y, and 0 where y = 0. Others by the fallback."""
    if p not in (2, "fro", None) or dtype is not None or x.is_complex():
        p = 2 if p in ("fro", None) else p
        return fallback(torch.linalg.vector_norm, (x, p, dim, keepdim), {"dtype": dtype})
    y = torch.linalg.vector_norm(x.primal, 2, dim, keepdim)

    def tangent() -> Tensor:
        x0, dx = lift(y, x.primal, x.tangent)
        return ((x0 * dx).sum(dim, keepdim=keepdim) / y).masked_fill_(y == 0, 0)

    return make(y, tangent)


def composite(func: Any) -> Any:
    """`func`, one of torch's own Python functions, run line by line on `Dual`s.

    Its `has_torch_function` checks answer no, so that its body runs and each line meets its rule.
    """
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**func.__globals__, **dict.fromkeys(names, lambda *_: False)}
    body = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def _raised(x: Dual, *parameters: Tensor | None) -> tuple[Any, ...]:
    """Primal, tangent and parameters in the dtype in which CUDA's autocast normalises: float32."""
    tensors = (x.primal, x.tangent, *parameters)
    if x.is_cuda and torch.is_autocast_enabled("cuda"):
        return tuple(z if z is None else z.float() for z in tensors)
    return tensors


def _register() -> None:
    for name in ("layer_norm", "group_norm", "rms_norm", "batch_norm"):
        RULES[getattr(F, name)] = globals()[name]
    RULES[torch.layer_norm], RULES[torch.group_norm] = layer_norm, group_norm
    RULES[torch.rms_norm] = rms_norm
    RULES.update({func: partial(variance, torch.var) for func in spellings("var")})
    RULES.update({func: partial(variance, torch.std) for func in spellings("std")})
    for func in (torch.norm, torch._C._VariableFunctions.norm, Tensor.norm):
        RULES[func] = norm
    RULES[torch.linalg.vector_norm] = lambda x, ord=2, *args, **kwargs: norm(
        x, ord, *args, **kwargs
    )
    for func in (F.normalize, F.multi_head_attention_forward):
        RULES[func] = composite(func)


_register()
