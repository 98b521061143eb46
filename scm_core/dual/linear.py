"""Rules of operations that are linear in their tensors: views, sums, products, convolutions.

The tangent of a linear operation is the operation itself on the tangent; of a bilinear one, the
product rule.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scm_core.dual.core import RULES, Dual, make, primal, spellings

LINEAR = """
reshape view flatten ravel permute transpose t adjoint swapaxes swapdims moveaxis movedim T mT H mH
real imag unsqueeze squeeze unflatten expand expand_as view_as reshape_as broadcast_to contiguous
clone detach to float double half bfloat16 type type_as cpu cuda chunk split tensor_split unbind
unsafe_chunk unsafe_split split_with_sizes hsplit vsplit dsplit __getitem__ select narrow
index_select take_along_dim gather masked_select diagonal diag tril triu repeat repeat_interleave
tile flip fliplr flipud roll rot90 cat concat concatenate stack hstack vstack dstack
pixel_shuffle pixel_unshuffle channel_shuffle interpolate upsample unfold fold avg_pool1d avg_pool2d
avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d sum mean cumsum trace
neg __neg__ negative positive __pos__ conj resolve_conj view_as_complex view_as_real
""".split()
"""Linear in the first argument (a tensor or a list of tensors), constant in all others."""

FFT = """fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn hfft ihfft fftshift
ifftshift""".split()

LINEAR_IN_ALL = """index_add index_copy scatter_add slice_scatter select_scatter diagonal_scatter
masked_scatter broadcast_tensors diff""".split()
"""Linear in all tensors that are not masks or indices, taken together."""

BILINEAR = "matmul bmm mm mv dot vdot inner outer ger kron".split()

CONVOLUTION = """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d
conv_transpose3d""".split()


def tangent_of(value: Any) -> Any:
    """`value` with each `Dual` replaced by its tangent and any other tensor beside it by zeros."""
    if isinstance(value, Dual):
        return value.tangent
    if isinstance(value, list | tuple):
        return [tangent_of(item) for item in value]
    return torch.zeros_like(value)


def wrap(out: Any, tangents: Any) -> Any:
    """`Dual`s of an operation's outputs; an output that is not floating has no tangent."""
    if isinstance(out, list | tuple):
        return type(out)([wrap(item, dx) for item, dx in zip(out, tangents, strict=True)])
    if isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex()):
        return make(out, lambda: tangents)
    return out


def linear_in_first(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """dy = f(dx): shapes, copies, sums and all else that is linear in `x`."""
    args = [primal(arg) for arg in args]
    kwargs = {key: primal(value) for key, value in kwargs.items()}
    out = func(primal(x), *args, **kwargs)
    # Not `primal(x) is x`: torch 2.11 cannot compile that for lists.
    if not isinstance(x, Dual) and not (
        isinstance(x, list | tuple) and any(isinstance(item, Dual) for item in x)
    ):
        return out
    with torch.no_grad():
        tangents = func(tangent_of(x), *args, **kwargs)
    return wrap(out, tangents)


def linear_in_all(func: Any, *args: Any, **kwargs: Any) -> Any:
    """dy = f(dx, dz, ...), with the masks, indices and numbers that f has."""

    def tangents(value: Any) -> Any:
        constant = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        return tangent_of(value) if isinstance(value, Dual) or constant else value

    out = func(*map(primal, args), **{key: primal(value) for key, value in kwargs.items()})
    with torch.no_grad():
        dy = func(*map(tangents, args), **{key: tangents(value) for key, value in kwargs.items()})
    return wrap(out, dy)


def scatter_reduce(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Sums and means are linear in both tensors; a product or a maximum goes to the fallback."""
    reduce = kwargs["reduce"] if "reduce" in kwargs else args[4]
    linear = reduce in ("sum", "mean")
    return linear_in_all(func, *args, **kwargs) if linear else RULES[None](func, args, kwargs)


def pad_sequence(sequences: Any, batch_first: bool = False, value: float = 0.0, *side: Any) -> Dual:
    """Sequences of different lengths as one tensor; what pads them is constant."""
    func = torch._C._nn.pad_sequence
    out = func(primal(sequences), batch_first, value, *side)
    return make(out, lambda: func(tangent_of(sequences), batch_first, 0.0, *side))


def bilinear(func: Any, a: Any, b: Any) -> Dual:
    """d(a b) = da b + a db."""
    x, y = primal(a), primal(b)

    def tangent() -> Tensor:
        if b is y:
            return func(a.tangent, y)
        if a is x:
            return func(x, b.tangent)
        return func(a.tangent, y).add_(func(x, b.tangent))

    return make(func(x, y), tangent, autocast=True)


def convolution(func: Any, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """d(w * x + b) = w * dx + dw * x + db."""
    x0, w0 = primal(x), primal(weight)

    def tangent() -> Tensor:
        db = bias.tangent if isinstance(bias, Dual) else None
        if w0 is weight:
            dx = torch.zeros_like(x0) if x0 is x else x.tangent
            return func(dx, w0, db, *args, **kwargs)
        dy = func(x0, weight.tangent, db, *args, **kwargs)
        return dy if x0 is x else dy.add_(func(x.tangent, w0, None, *args, **kwargs))

    return make(func(x0, w0, primal(bias), *args, **kwargs), tangent, autocast=True)


def einsum(equation: str, *operands: Any) -> Dual:
    """Product rule over all operands."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    values = [primal(operand) for operand in operands]

    def tangent() -> Tensor:
        terms = [
            torch.einsum(equation, *values[:i], operand.tangent, *values[i + 1 :])
            for i, operand in enumerate(operands)
            if isinstance(operand, Dual)
        ]
        return sum(terms[1:], terms[0])

    return make(torch.einsum(equation, *values), tangent, autocast=True)


def product_sum(func: Any, bias: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Dual:
    """d(beta c + alpha a b) = beta dc + alpha (da b + a db), for addmm and its batched forms."""
    c, x, y = primal(bias), primal(a), primal(b)

    def tangent() -> Tensor:
        dc = beta * bias.tangent if isinstance(bias, Dual) else torch.zeros_like(c)
        if isinstance(a, Dual):
            dc = func(dc, a.tangent, y, alpha=alpha)
        return func(dc, x, b.tangent, alpha=alpha) if isinstance(b, Dual) else dc

    return make(func(c, x, y, beta=beta, alpha=alpha), tangent, autocast=True)


def pad(x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Dual:
    """A constant border has a zero tangent; every other mode is linear."""
    return make(F.pad(x.primal, pad, mode, value), lambda: F.pad(x.tangent, pad, mode))


def where(condition: Any, a: Any, b: Any) -> Any:
    """The tangent of the branch taken; a plain branch has none."""
    out = torch.where(condition, primal(a), primal(b))
    da, db = (value.tangent if isinstance(value, Dual) else 0.0 for value in (a, b))
    return make(out, lambda: torch.where(condition, da, db))


def masked_fill(x: Any, mask: Tensor, value: Any) -> Any:
    """Filled elements are constant."""
    if isinstance(value, Dual):
        return where(mask, value, x)
    return make(x.primal.masked_fill(mask, value), lambda: x.tangent.masked_fill(mask, 0.0))


def _register() -> None:
    tables = [
        (linear_in_first, LINEAR),
        (linear_in_all, LINEAR_IN_ALL),
        (scatter_reduce, ["scatter_reduce"]),
        (bilinear, BILINEAR),
        (convolution, CONVOLUTION),
        (product_sum, "addmm baddbmm addmv addr addbmm".split()),
    ]
    for implementation, names in tables:
        for name in names:
            RULES.update({func: partial(implementation, func) for func in spellings(name)})
    for name in FFT:
        func = getattr(torch.fft, name)
        RULES[func] = partial(linear_in_first, func)
    RULES[Tensor.where] = lambda x, condition, other: where(condition, x, other)
    for func in (torch.where, torch.einsum, torch.functional.einsum):
        RULES[func] = where if func is torch.where else einsum
    RULES[F.pad] = RULES[torch._C._nn.pad] = pad
    RULES[torch._C._nn.pad_sequence] = pad_sequence
    for func in (torch.masked_fill, Tensor.masked_fill):
        RULES[func] = masked_fill


_register()
