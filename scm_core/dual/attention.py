"""Rule of scaled dot-product attention with memory linear in the sequence length.

The primal runs through torch's fused kernel, whichever it picks. The tangent rebuilds the
probabilities without a graph: on a GPU in a kernel of its own, else one block of query rows at a
time, which holds whole rows, so that an ordinary softmax does it. [sCM, arXiv 2410.11081,
Appendix F]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scm_core.dual import flash
from scm_core.dual.core import RULES, Dual, make, primal

aten = torch.ops.aten
BLOCK = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Elements of one block of probabilities (samples x heads x rows x keys), per thread on the CPU:
what a core's cache holds."""
_ROWS = 64  # fewer query rows than this in a block would waste the matrix unit


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Dual:
    """o = p v, p = softmax(s), s = scale q k^T + mask; do = (p * (ds - sum(p ds))) v + p dv.

    Boolean and additive masks (plain or `Dual`), causal and grouped-query attention. Dropout of the
    probabilities takes memory quadratic in the sequence length.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if dropout_p > 0.0:
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        return _with_dropout(query, key, value, attn_mask, dropout_p, is_causal, scale)
    tensors = (primal(x) for x in (query, key, value, attn_mask))
    out = F.scaled_dot_product_attention(
        *tensors, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return make(out, lambda: _tangent(out, query, key, value, attn_mask, is_causal, scale))


def _tangent(
    out: Tensor, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float
) -> Tensor:
    """The tangent of `out`, by the kernel for GPUs where it applies, else in blocks."""
    *batch, heads = out.shape[:-2] or (1,)

    def parts(x: Any) -> list[Tensor | None]:
        """Primal and tangent as (B, heads, n, m), in the dtype of the output."""
        pair = (x.primal, x.tangent) if isinstance(x, Dual) else (x, None)
        flat = (z if z is None else z.to(out.dtype) for z in pair)
        return [z if z is None else _four(z, batch) for z in flat]

    (q, dq), (k, dk), (v, dv) = parts(query), parts(key), parts(value)
    shape = (*batch, heads, out.shape[-2], key.shape[-2])
    if isinstance(mask, Dual):
        bias, dbias = (_four(x.expand(shape), batch) for x in (mask.primal, mask.tangent))
    else:
        bias, dbias = mask if mask is None else _four(mask.expand(shape), batch), None
    whole = _four(out, batch)
    if dbias is None and flash.applies(q, v):
        tangent = flash.tangent(whole, q, k, v, dq, dk, dv, bias, causal, scale)
    else:
        tangent = in_blocks(whole, (q, dq), (k, dk), (v, dv), (bias, dbias), causal, scale)
    return tangent.reshape(out.shape)


def _four(x: Tensor, batch: list[int]) -> Tensor:
    """x (..., n, m) as (B, heads, n, m): B are all of the `batch`, which it may broadcast to."""
    heads = x.shape[-3] if x.ndim > 2 else 1
    return x.expand(*batch, heads, *x.shape[-2:]).reshape(-1, heads, *x.shape[-2:])


Pair = tuple[Tensor | None, Tensor | None]


def in_blocks(
    out: Tensor, query: Pair, key: Pair, value: Pair, mask: Pair, causal: bool, scale: float
) -> Tensor:
    """The tangent of `out` (B, H, N, D) from pairs of primal and tangent, (B, H or H / g, ...).

    Written a block of heads and of query rows at a time.
    """
    heads, rows, keys = out.shape[1], out.shape[2], key[0].shape[2]

    def flat(x: Tensor | None) -> Tensor | None:
        if x is not None and x.shape[1] < heads:
            x = x.repeat_interleave(heads // x.shape[1], 1)
        return x if x is None else x.flatten(0, 1)

    (q, dq), (k, dk), (v, dv) = (map(flat, pair) for pair in (query, key, value))
    tangent = torch.empty(len(q), rows, v.shape[-1], dtype=out.dtype, device=out.device)
    for n, r in _blocks(len(q), rows, keys, _block_size(out.device.type)):
        c = slice(0, min(r.stop, keys)) if causal else slice(0, keys)
        kT, dkT = k[n, c].mT, None if dk is None else dk[n, c].mT
        s = _products((q[n, r], kT), scale=scale)
        ds = _products((None if dq is None else dq[n, r], kT), (q[n, r], dkT), scale=scale)
        s, ds = _masked(s, ds, mask, (n, r, c))
        if causal:
            seen = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).tril(r.start)
            s.masked_fill_(~seen, -math.inf)
        p = torch.softmax(s, -1) if mask[0] is None else torch._safe_softmax(s, -1)
        dp = None if ds is None else aten._softmax_backward_data(ds, p, -1, p.dtype)
        _products((dp, v[n, c]), (p, None if dv is None else dv[n, c]), out=tangent[n, r])
    return tangent.view(out.shape)


def _block_size(device: str) -> int:
    if torch.compiler.is_compiling():  # each block becomes code of its own
        return BLOCK["cuda"]
    return BLOCK["cpu"] * torch.get_num_threads() if device == "cpu" else BLOCK["cuda"]


def _blocks(heads: int, rows: int, keys: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and of query rows, each pair with about `size` probabilities."""
    least = min(rows, _ROWS)
    count = max(1, min(heads, size // (least * keys)))
    height = max(least, min(rows, size // (count * keys)))
    for n in range(0, heads, count):
        for r in range(0, rows, height):
            yield slice(n, min(n + count, heads)), slice(r, min(r + height, rows))


def _products(
    *terms: tuple[Tensor | None, Tensor | None], scale: float = 1.0, out: Tensor | None = None
) -> Tensor | None:
    """scale times the sum of a @ b over those terms of which both factors are there."""
    beta = 0.0
    for a, b in terms:
        if a is not None and b is not None:
            out = a.new_empty(*a.shape[:2], b.shape[2]) if out is None else out
            out.baddbmm_(a, b, beta=beta, alpha=scale)
            beta = 1.0
    return out


def _masked(
    s: Tensor, ds: Tensor | None, mask: Pair, block: tuple[slice, slice, slice]
) -> tuple[Tensor, Tensor | None]:
    """Logits and their tangent with the part of this block of a mask (B, H, N, M)."""
    bias, dbias = mask
    if bias is None:
        return s, ds
    n, r, c = block

    def part(x: Tensor) -> Tensor:
        if not any(x.stride(i) for i in (0, 1) if x.shape[i] > 1):  # one mask for all heads
            return x[0, 0, r, c]
        heads = torch.unravel_index(torch.arange(n.start, n.stop, device=x.device), x.shape[:2])
        return x[(*heads, r, c)]

    if dbias is not None:
        dbias = part(dbias).to(s.dtype)
        ds = dbias.expand_as(s) if ds is None else ds + dbias
    if bias.dtype == torch.bool:
        return s.masked_fill_(~part(bias), -math.inf), ds
    return s + part(bias).to(s.dtype), ds


def _with_dropout(
    query: Any, key: Any, value: Any, mask: Any, p: float, causal: bool, scale: float
) -> Dual:
    """Attention spelt out, each step by its own rule: the dropout mask must reach both parts."""
    s = torch.matmul(query * scale, key.transpose(-2, -1))
    if causal:
        mask = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).tril()
    if mask is not None:
        boolean = mask.dtype == torch.bool
        s = s.masked_fill(~mask, -math.inf) if boolean else s + mask
    return torch.matmul(F.dropout(torch.softmax(s, -1), p), value)


RULES[F.scaled_dot_product_attention] = attention
