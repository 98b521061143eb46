"""A diffusion transformer over token grids of 1, 2 or 3 dimensions, after the rules of sCM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from scm_core.networks.layers import (
    AdaptiveNorm,
    Attention,
    ConditionEmbedding,
    ConditionTokens,
    CrossAttention,
    PatchHead,
    PatchStem,
    TimeEmbedding,
    grid_positions,
)
from scm_core.networks.layers.condition import Context

ATTENTION = {"full": ("all",), "factorised": ("rest", "first")}  # over what, block after block


class Block(nn.Module):
    """Attention and an MLP, each behind an adaptive double norm, on a residual stream.

    Tokens attend `over` all tokens, or those along the first axis of their grid (time), or the
    rest of them (one frame). A block that `crosses` attends to a context in between.
    """

    def __init__(
        self, width: int, heads: int, dropout: float, over: str = "all", crosses: bool = False
    ) -> None:
        super().__init__()
        self.over = over
        self.attention_norm = AdaptiveNorm(width, width)
        self.attention = Attention(width, heads)
        self.perceptron_norm = AdaptiveNorm(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(4 * width, width)
        nn.init.zeros_(self.contract.weight)
        nn.init.zeros_(self.contract.bias)
        self.cross_norm = AdaptiveNorm(width, width) if crosses else None
        self.cross = CrossAttention(width, heads, width) if crosses else None

    def forward(
        self, x: Tensor, embedding: Tensor, first: int = 1, context: Context | None = None
    ) -> Tensor:
        """Tokens (B, N, C) of a grid whose first axis is `first` long."""
        x = x + self.attend(self.attention_norm(x, embedding), first)
        if self.cross is not None:
            x = x + self.cross(self.cross_norm(x, embedding), *context)
        hidden = functional.silu(self.expand(self.perceptron_norm(x, embedding)))
        return x + self.contract(self.dropout(hidden))

    def attend(self, x: Tensor, first: int) -> Tensor:
        if self.over == "all":
            return self.attention(x)
        split = x.unflatten(1, (first, -1))
        if self.over == "rest":
            return self.attention(split.flatten(0, 1)).reshape(x.shape)
        swapped = split.transpose(1, 2)
        attended = self.attention(swapped.flatten(0, 1)).reshape(swapped.shape)
        return attended.transpose(1, 2).flatten(1, 2)


class Transformer(nn.Module):
    """F(x_t / sigma_data, t, condition) for samples (B, C, *grid).

    `patch` is the patch size. Positions are fixed sines and cosines, so a grid of
    another size than the training grid works at sampling time. With factorised `attention` blocks
    attend in turn within a frame (all but the grid's first axis) and over time (that axis), which
    costs less for clips. Raises ValueError for what does not fit.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        condition: Mapping[str, Any],
        *,
        width: int,
        depth: int,
        heads: int,
        patch: int = 2,
        dropout: float = 0.0,
        attention: str = "full",
    ) -> None:
        super().__init__()
        channels, *grid = shape
        if attention not in ATTENTION:
            raise ValueError(f"attention={attention} is none of {', '.join(ATTENTION)}")
        if attention == "factorised" and len(grid) < 2:
            raise ValueError("factorised attention needs a grid of two or three dimensions")
        if any(size % patch for size in grid):
            raise ValueError(f"grid {tuple(grid)} is not divisible by the patch size {patch}")
        self.width = width
        self.time = TimeEmbedding(width)
        self.condition = ConditionEmbedding(condition, width)
        self.stem = PatchStem(channels, width, (patch,) * len(grid))
        self.context = ConditionTokens(condition, width)
        over, crosses = ATTENTION[attention], bool(self.context.fields)
        self.blocks = nn.ModuleList(
            [Block(width, heads, dropout, over[i % len(over)], crosses) for i in range(depth)]
        )
        self.norm = AdaptiveNorm(width, width)
        self.head = PatchHead(width, channels, (patch,) * len(grid))

    def forward(self, x: Tensor, t: Tensor, condition: dict[str, Tensor] | None = None) -> Tensor:
        embedding = functional.silu(self.time(t) + self.condition(condition, t))
        context = self.context(condition, t)
        features = self.stem(x)
        grid = tuple(features.shape[2:])
        tokens = features.flatten(2).transpose(1, 2).contiguous()
        tokens = tokens + grid_positions(grid, self.width, tokens.device).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, embedding, grid[0], context)
        tokens = self.norm(tokens, embedding)
        return self.head(tokens.transpose(1, 2).unflatten(2, grid))
