"""Attention's tangent on a GPU: a Triton kernel that never writes the probabilities to memory.

The primal stays with torch's own fused kernel, forward and backward, whichever it picks. This one
goes over the keys once more, block by block, with the running maximum of FlashAttention
[arXiv 2205.14135], and carries what the tangent needs [sCM, arXiv 2410.11081, Appendix F]: five
products instead of two, one accumulator, memory linear in the number of tokens.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with torch for CUDA alone
    triton = None

# Tiles by bytes of a number and width of a head, the fastest on an H100 first: queries, keys,
# warps, stages of the pipeline, and the bytes of shared memory that they take.
TILES = {
    (2, 64): [(64, 64, 4, 3, 114_688), (64, 32, 4, 3, 65_536)],
    (2, 128): [(128, 64, 8, 2, 196_608), (128, 32, 8, 3, 163_840), (128, 64, 8, 1, 81_920)],
    (2, 256): [(128, 32, 8, 1, 147_456), (64, 32, 4, 1, 81_920)],
    (4, 64): [(64, 32, 4, 2, 114_688), (64, 32, 4, 1, 81_920)],
    (4, 128): [(64, 32, 8, 1, 163_840), (16, 32, 4, 1, 65_536)],
    (4, 256): [(16, 32, 4, 1, 98_304)],
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SMALLEST = 64  # the narrowest tile; a narrower head leaves a part of it empty


def missing(index: int | None = None) -> str | None:
    """Why the kernel cannot run on that CUDA device, or None where it can."""
    if triton is None:
        return "Triton is not installed"
    if torch.version.hip or not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.cuda.get_device_capability(index) < (8, 0):
        return "it needs compute capability 8.0"
    return None


@torch.compiler.assume_constant_result  # a compiler cannot look into the device
def room(index: int | None) -> int:
    """Bytes of shared memory that a block of threads may take, 0 where the kernel cannot run."""
    return _room(index)


@cache
def _room(index: int | None) -> int:
    if missing(index):
        return 0
    return torch.cuda.get_device_properties(index).shared_memory_per_block_optin


def tile(width: int, dtype: torch.dtype, memory: int) -> tuple[int, ...] | None:
    """The best tile for heads of that width which fits into `memory` bytes, if there is one."""
    key = dtype.itemsize, max(SMALLEST, 1 << (width - 1).bit_length())
    return next((found for found in TILES.get(key, []) if found[-1] <= memory), None)


def applies(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes attention with these queries and values; else blocks do."""
    if not query.is_cuda or query.dtype not in DTYPES or query.shape[-1] != value.shape[-1]:
        return False
    if any(x.shape[-2] * x.stride(-2) >= 1 << 31 for x in (query, value)):  # its offsets' 32 bits
        return False
    return tile(query.shape[-1], query.dtype, room(query.device.index)) is not None


if triton is not None:

    @triton.jit
    def _rows(X, strides, b, h, offsets, columns, rows, D: tl.constexpr, EVEN: tl.constexpr):
        """A tile (rows, D) of X (B, H, N, D), zeros beyond its edges."""
        base = X + b.to(tl.int64) * strides[0] + h.to(tl.int64) * strides[1]
        at = base + offsets[:, None] * strides[2] + columns[None, :] * strides[3]
        seen = offsets[:, None] < rows
        if not EVEN:
            seen = seen & (columns[None, :] < D)
        return tl.load(at, mask=seen, other=0.0)

    @triton.jit
    def _kernel(
        Q, dQ, K, dK, V, dV, OUT, dOUT, MASK,  # fmt: skip
        of_q, of_dq, of_k, of_dk, of_v, of_dv, of_o, of_do, of_mask,  # fmt: skip
        heads, group, rows, keys, scale,
        D: tl.constexpr,
        HAS_DQ: tl.constexpr,
        HAS_DK: tl.constexpr,
        HAS_DV: tl.constexpr,
        BOOLEAN: tl.constexpr,
        ADDITIVE: tl.constexpr,
        CAUSAL: tl.constexpr,
        PRECISION: tl.constexpr,
        BLOCK_M: tl.constexpr,
        BLOCK_N: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """do of BLOCK_M queries of one head, (acc - mu o) / total, from sums over the keys j:
        acc = sum p_j (ds_j v_j + dv_j), mu = sum p_j ds_j, total = sum p_j."""
        EVEN: tl.constexpr = D == BLOCK_D
        blocks = tl.cdiv(rows, BLOCK_M)  # in one dimension, for the others end at 65,535
        block, head = tl.program_id(0) % blocks, tl.program_id(0) // blocks
        b, h = head // heads, head % heads
        m = block * BLOCK_M + tl.arange(0, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        q = _rows(Q, of_q, b, h, m, d, rows, D, EVEN)
        if HAS_DQ:
            dq = _rows(dQ, of_dq, b, h, m, d, rows, D, EVEN)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        mu = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        end = tl.minimum(keys, (block + 1) * BLOCK_M) if CAUSAL else keys
        for start in range(0, end, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            k = tl.trans(_rows(K, of_k, b, h // group, n, d, keys, D, EVEN))
            s = tl.dot(q, k, input_precision=PRECISION)
            if HAS_DQ:
                ds = tl.dot(dq, k, input_precision=PRECISION)
            else:
                ds = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if HAS_DK:
                dk = tl.trans(_rows(dK, of_dk, b, h // group, n, d, keys, D, EVEN))
                ds = tl.dot(q, dk, ds, input_precision=PRECISION)
            s = s * (scale * 1.4426950408889634)  # base 2: exp2 is one instruction
            ds = ds * scale
            seen = n[None, :] < keys
            if CAUSAL:
                seen = seen & (n[None, :] <= m[:, None])
            if BOOLEAN or ADDITIVE:
                inside = (m[:, None] < rows) & (n[None, :] < keys)
                at = MASK + b.to(tl.int64) * of_mask[0] + h.to(tl.int64) * of_mask[1]
                at = at + m[:, None].to(tl.int64) * of_mask[2] + n[None, :] * of_mask[3]
                bias = tl.load(at, mask=inside, other=0)
                if BOOLEAN:
                    seen = seen & (bias != 0)
                else:
                    s += bias.to(tl.float32) * 1.4426950408889634
            s = tl.where(seen, s, float("-inf"))
            higher = tl.maximum(highest, tl.max(s, 1))
            pivot = tl.where(higher == float("-inf"), 0.0, higher)  # of rows that see nothing yet
            p = tl.exp2(s - pivot[:, None])
            fade = tl.exp2(highest - pivot)
            pds = (p * ds).to(q.dtype)  # rounded in both sums, of which the difference counts
            total = total * fade + tl.sum(p, 1)
            mu = mu * fade + tl.sum(pds.to(tl.float32), 1)
            v = _rows(V, of_v, b, h // group, n, d, keys, D, EVEN)
            acc = tl.dot(pds, v, acc * fade[:, None], input_precision=PRECISION)
            if HAS_DV:
                dv = _rows(dV, of_dv, b, h // group, n, d, keys, D, EVEN)
                acc = tl.dot(p.to(v.dtype), dv, acc, input_precision=PRECISION)
            highest = higher
        o = _rows(OUT, of_o, b, h, m, d, rows, D, EVEN).to(tl.float32)
        do = (acc - mu[:, None] * o) / tl.where(total == 0, 1.0, total)[:, None]
        do = tl.where(total[:, None] == 0, 0.0, do)  # a row that sees nothing
        base = dOUT + b.to(tl.int64) * of_do[0] + h.to(tl.int64) * of_do[1]
        at = base + m[:, None] * of_do[2] + d[None, :] * of_do[3]
        inside = (m[:, None] < rows) & (d[None, :] < D)
        tl.store(at, do.to(dOUT.dtype.element_ty), mask=inside)


def launch(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dquery: Tensor | None,
    dkey: Tensor | None,
    dvalue: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """The tangent of `out` (B, H, N, D), where `key` and `value` are (B, H / g, M, D).

    Tensors of one dtype, with any strides; a tangent that is None is zero. `mask` is boolean or
    additive and broadcasts to (B, H, N, M).
    """
    batch, heads, rows, width = out.shape
    keys = key.shape[-2]
    do = torch.empty_like(out)
    if mask is not None:
        mask = mask.expand(batch, heads, rows, keys)
    boolean = mask is not None and mask.dtype == torch.bool
    tensors = [query, dquery, key, dkey, value, dvalue, out, do]
    tensors.append(mask.view(torch.uint8) if boolean else mask)
    memory = room(out.device.index) if out.is_cuda else sys.maxsize  # which the interpreter has
    m, n, warps, stages, _ = tile(width, out.dtype, memory)
    _kernel[(triton.cdiv(rows, m) * batch * heads,)](
        *tensors,
        *[(0, 0, 0, 0) if x is None else x.stride() for x in tensors],
        heads,
        heads // key.shape[1],
        rows,
        keys,
        scale,
        D=width,
        HAS_DQ=dquery is not None,
        HAS_DK=dkey is not None,
        HAS_DV=dvalue is not None,
        BOOLEAN=boolean,
        ADDITIVE=mask is not None and not boolean,
        CAUSAL=causal,
        PRECISION="tf32x3",  # of float32, whose products are else rounded to ten bits
        BLOCK_M=m,
        BLOCK_N=n,
        BLOCK_D=max(SMALLEST, 1 << (width - 1).bit_length()),
        num_warps=warps,
        num_stages=stages,
    )
    return do


tangent = torch.library.custom_op(
    "scm_core::attention_tangent", launch, mutates_args=(), device_types="cuda"
)


@tangent.register_fake
def _(out: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(out)


@register_flop_formula(torch.ops.scm_core.attention_tangent)
def _flops(out: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Five products at most; of tangents that are None the formula knows nothing."""
    batch, heads, rows, width = out
    return 5 * 2 * batch * heads * rows * key[-2] * width
