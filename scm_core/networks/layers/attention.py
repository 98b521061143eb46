"""Attention with RMS-normed queries and keys (arXiv 2410.11081, section 4.1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from scm_core.networks.layers.norm import RMSNorm


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, C) to (B, N, C).

    Normed queries and keys bound the logits, so that neither bf16 nor the tangent overflows. The
    output projection starts at zero: a fresh block is the identity on its residual stream.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not split into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.query_norm = RMSNorm(channels // heads, eps=1e-6)
        self.key_norm = RMSNorm(channels // heads, eps=1e-6)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.query_norm(q), self.key_norm(k)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return self.out(attended.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens (B, N, C) to those of a context (B, L, E), to (B, N, C).

    A mask, bool (B, L), says which of the context there are: at least one. Normed and started at
    zero as `Attention` is.
    """

    def __init__(self, channels: int, heads: int, context: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not split into {heads} heads")
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(context, 2 * channels)
        self.query_norm = RMSNorm(channels // heads, eps=1e-6)
        self.key_norm = RMSNorm(channels // heads, eps=1e-6)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        pair = self.key_value(context).unflatten(-1, (2, self.heads, -1))
        k, v = pair.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.query_norm(q), self.key_norm(k)
        attended = functional.scaled_dot_product_attention(q, k, v, mask[:, None, None])
        return self.out(attended.transpose(1, 2).flatten(2))
