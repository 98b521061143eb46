"""Rule of scaled dot-product attention with memory linear in the sequence length.

The primal runs through torch's fused kernel, whichever it picks. The tangent rebuilds the
probabilities one block of query rows at a time, without a graph: a block holds whole rows, so that
an ordinary softmax does it. [sCM, arXiv 2410.11081, Appendix F]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if dropout_p > 0.0:
        return _with_dropout(query, key, value, attn_mask, dropout_p, is_causal, scale)
    out = F.scaled_dot_product_attention(
        primal(query), primal(key), primal(value), primal(attn_mask), 0.0, is_causal, scale=scale
    )
    return make(out, lambda: _tangent(out, query, key, value, attn_mask, is_causal, scale))


def _tangent(
    out: Tensor, query: Any, key: Any, value: Any, mask: Any, causal: bool, scale: float
) -> Tensor:
    """The tangent of `out`, written a block of heads and of query rows at a time."""
    batch, rows, keys = out.shape[:-2], out.shape[-2], key.shape[-2]

    def parts(x: Any) -> list[Tensor | None]:
        """Primal and tangent as (heads, n, m), in the dtype of the output."""
        pair = (x.primal, x.tangent) if isinstance(x, Dual) else (x, None)
        flat = (z if z is None else z.to(out.dtype).expand(*batch, *z.shape[-2:]) for z in pair)
        return [z if z is None else z.reshape(-1, *z.shape[-2:]) for z in flat]

    (q, dq), (k, dk), (v, dv) = parts(query), parts(key), parts(value)
    tangent = torch.empty(len(q), rows, v.shape[-1], dtype=out.dtype, device=out.device)
    for n, r in _blocks(len(q), rows, keys, _block_size(out.device.type)):
        c = slice(0, min(r.stop, keys)) if causal else slice(0, keys)
        kT, dkT = k[n, c].mT, None if dk is None else dk[n, c].mT
        s = _products((q[n, r], kT), scale=scale)
        ds = _products((None if dq is None else dq[n, r], kT), (q[n, r], dkT), scale=scale)
        s, ds = _masked(s, ds, mask, batch, (rows, keys), (n, r, c))
        if causal:
            seen = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).tril(r.start)
            s.masked_fill_(~seen, -math.inf)
        p = torch.softmax(s, -1) if mask is None else torch._safe_softmax(s, -1)
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
    s: Tensor,
    ds: Tensor | None,
    mask: Any,
    batch: torch.Size,
    shape: tuple[int, int],
    block: tuple[slice, slice, slice],
) -> tuple[Tensor, Tensor | None]:
    """Logits and their tangent with the mask's part of this block."""

    def part(x: Tensor) -> Tensor:
        x, (n, r, c) = x.expand(*x.shape[:-2], *shape), block
        if x.shape[:-2].numel() == 1:  # one mask for all heads
            return x.reshape(shape)[r, c]
        heads = torch.unravel_index(torch.arange(n.start, n.stop, device=x.device), batch)
        return x.expand(*batch, *shape)[(*heads, r, c)]

    if mask is None:
        return s, ds
    if isinstance(mask, Dual):
        dbias = part(mask.tangent).to(s.dtype)
        ds = dbias.expand_as(s) if ds is None else ds + dbias
    bias = part(primal(mask))
    if bias.dtype == torch.bool:
        return s.masked_fill_(~bias, -math.inf), ds
    return s + bias.to(s.dtype), ds


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
