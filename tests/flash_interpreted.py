"""Attention's tangent by the kernel for GPUs, in Triton's interpreter: one line of JSON a case.

A process of its own, with TRITON_INTERPRET=1: the kernel is bound to the interpreter or to a GPU as
it is defined. Its argument is a dtype. An error is the largest one, as a share of the largest
number of the exact tangent.
"""

import json
import sys

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton import language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from scm_core.dual import flash

WIDTHS = (32, 40, 64, 96, 128, 256)
NAMES = ("query", "key", "value")
interpreted_dot, interpreted_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl


def lifted(x):
    """A tile of bfloat16, which the interpreter keeps as its bits in uint16, in float32."""
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def create_dot(self, a, b, *others):
    """The interpreter itself would multiply the bits of bfloat16 as whole numbers."""
    return interpreted_dot(self, lifted(a), lifted(b), *others)


def cast_impl(self, x, dtype):
    """Casts to bfloat16 round to the nearest, as on a GPU: the interpreter's own cut bits off."""
    if dtype.scalar != tl.bfloat16 or x.dtype.scalar != tl.float32:
        return interpreted_cast(self, x, dtype)
    bits = torch.from_numpy(x.data.copy()).bfloat16().view(torch.uint16)
    return TensorHandle(bits.numpy(), tl.bfloat16)


InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl


def transposed(x):
    """The same numbers, laid out as (B, N, H, D)."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def column_wise(x):
    return x.mT.contiguous().mT


def one_for_all(x):
    """The first sample's numbers for every sample, with a stride of zero."""
    return x[:1].expand_as(x)


def boolean(rows, keys):
    """(1, 1, N, M): row 0 sees nothing, and the last one sees the last key alone."""
    mask = torch.rand(1, 1, rows, keys) < 0.5
    mask[..., -1, :] = False
    mask[..., -1] = True
    mask[..., 0, :] = False
    return mask


def padded(rows, keys):
    """(2, 1, 1, M): of the second sample a third of the keys, and those of the end."""
    mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    mask[1, ..., : keys // 3] = False
    return mask


def additive(rows, keys):
    """(2, 1, N, M), for all heads; row 0 of the second sample sees nothing."""
    mask = torch.randn(2, 1, rows, keys)
    mask[..., ::5] = -torch.inf
    mask[1, :, 0] = -torch.inf
    return mask


def error(
    dtype, width=40, batch=1, rows=36, keys=70, heads=2, groups=1, mask=None, causal=False,
    scale=None, without=(), layout=None,
):  # fmt: skip
    """The kernel's error in one case; `without` are those whose tangent is None."""
    torch.manual_seed(0)
    shapes = [(batch, heads, rows, width), *[(batch, heads // groups, keys, width)] * 2]
    primals, tangents = ([torch.randn(shape).to(dtype) for shape in shapes] for _ in range(2))
    if layout:
        primals, tangents = ([layout(x) for x in parts] for parts in (primals, tangents))
    given = mask(rows, keys) if mask else None
    given = given if given is None or given.dtype == torch.bool else given.to(dtype)
    wide = given if given is None or given.dtype == torch.bool else given.double()

    def attend(*qkv):
        return F.scaled_dot_product_attention(
            *qkv, wide, is_causal=causal, scale=scale, enable_gqa=groups > 1
        )

    known = [x.double() * (name not in without) for name, x in zip(NAMES, tangents, strict=True)]
    with sdpa_kernel(SDPBackend.MATH):
        exact = torch.func.jvp(attend, tuple(x.double() for x in primals), tuple(known))
    out = exact[0].to(dtype)
    tangents = [None if n in without else x for n, x in zip(NAMES, tangents, strict=True)]
    scale = width**-0.5 if scale is None else scale
    found = flash.launch(layout(out) if layout else out, *primals, *tangents, given, causal, scale)
    assert found.dtype == dtype and found.shape == out.shape
    return ((found - exact[1]).abs().max() / exact[1].abs().max()).item()


OPTIONS = {
    **{f"{rows} queries, {keys} keys": {"rows": rows, "keys": keys} for rows, keys in (
        (1, 1), (1, 77), (36, 36), (48, 48), (77, 77), (37, 101), (101, 37)
    )},
    "boolean mask": {"batch": 2, "mask": boolean},
    "boolean mask of keys": {"batch": 2, "mask": padded},
    "additive mask": {"batch": 2, "mask": additive},
    "causal": {"causal": True, "rows": 131, "keys": 131},
    "causal, more keys": {"causal": True, "rows": 37, "keys": 101},
    "causal, fewer keys": {"causal": True, "rows": 101, "keys": 37},
    "grouped": {"batch": 2, "heads": 6, "groups": 3, "rows": 20},
    "grouped, boolean mask": {"heads": 4, "groups": 4, "mask": boolean},
    "grouped, causal": {"heads": 4, "groups": 2, "causal": True},
    "scale": {"scale": 0.5},
    **{f"no tangent of {' and '.join(names)}": {"without": names} for names in (
        ("query",), ("key",), ("value",), ("query", "key"), ("query", "value"), ("key", "value")
    )},
    "no tangent of query, causal": {"without": ("query",), "causal": True},
    **{f.__name__: {"batch": 2, "rows": 20, "layout": f} for f in (
        transposed, column_wise, one_for_all
    )},
    "transposed, grouped, additive mask": {
        "batch": 2, "heads": 4, "groups": 2, "layout": transposed, "mask": additive
    },
}  # fmt: skip

if __name__ == "__main__":
    cases = [({"width": width}, f"width {width}") for width in WIDTHS]
    for width in WIDTHS[1::2]:  # one of each width of a tile
        cases.append(({"width": width, "causal": True}, f"width {width}, causal"))
    cases += [(options, name) for name, options in OPTIONS.items()]
    for options, name in cases:
        print(json.dumps([name, error(getattr(torch, sys.argv[1]), **options)]))
