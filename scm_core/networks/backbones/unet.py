"""A U-Net over grids of 1, 2 or 3 dimensions, after the network rules of sCM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scm_core.networks.layers import (
    Attention,
    ConditionEmbedding,
    ConditionTokens,
    CrossAttention,
    PatchHead,
    PatchStem,
    TimeEmbedding,
    convolution,
)
from scm_core.networks.layers.condition import Context
from scm_core.networks.layers.norm import GroupNorm, Modulation, own_dtype

GROUP = 16  # channels per group of a group norm


def group_norm(channels: int, affine: bool = True) -> GroupNorm:
    return GroupNorm(max(1, channels // GROUP), channels, affine=affine)


class ResidualBlock(nn.Module):
    """Two convolutions with an adaptive double norm between them, and a skip connection."""

    def __init__(
        self, dimensions: int, inputs: int, channels: int, embedding: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_in = group_norm(inputs)
        self.conv_in = convolution(dimensions, inputs, channels)
        self.norm_out = group_norm(channels, affine=False)
        self.modulation = Modulation(channels, embedding)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = convolution(dimensions, channels, channels)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)
        same = inputs == channels
        self.skip = nn.Identity() if same else convolution(dimensions, inputs, channels, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.conv_in(functional.silu(self.norm_in(x)))
        scale, shift = (
            part.reshape(*part.shape, *[1] * (x.ndim - 2)).to(hidden.dtype)
            for part in self.modulation(embedding)
        )
        hidden = functional.silu(torch.addcmul(shift, self.norm_out(hidden), scale))
        return self.skip(x) + self.conv_out(self.dropout(hidden))


class GridAttention(nn.Module):
    """Self-attention over all cells of a grid, (B, C, *grid) to the same.

    Then attention to a context of tokens of `context` channels, unless that is 0.
    """

    def __init__(self, channels: int, head_channels: int, context: int = 0) -> None:
        super().__init__()
        heads = max(1, channels // head_channels)
        self.norm = group_norm(channels)
        self.attention = Attention(channels, heads)
        self.cross_norm = group_norm(channels) if context else None
        self.cross = CrossAttention(channels, heads, context) if context else None

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        x = x + self.attention(tokens).transpose(1, 2).reshape(x.shape)
        if self.cross is None:
            return x
        tokens = self.cross_norm(x).flatten(2).transpose(1, 2)
        return x + self.cross(tokens, *context).transpose(1, 2).reshape(x.shape)


class NoAttention(nn.Identity):
    """In the place of a level's `GridAttention`."""

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        return x


class Level(nn.Module):
    """The residual blocks of one resolution, on the way down or up."""

    def __init__(self, blocks: list[ResidualBlock], attention: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)


class UNet(nn.Module):
    """F(x_t / sigma_data, t, condition) for samples (B, C, *grid).

    `channels` gives the width of each level; each level halves the grid. The middle always
    attends to the whole coarsest grid, and so do the `attention` lowest levels; there too a
    condition's sequences are attended to. Patches of the size `patch` are folded into channels
    first. Raises ValueError on a grid that does not halve that often.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        condition: Mapping[str, Any],
        *,
        channels: tuple[int, ...],
        blocks: int,
        embedding: int,
        attention: int = 0,
        patch: int = 1,
        head_channels: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sample_channels, *grid = shape
        n = len(grid)
        divisor = patch * 2 ** (len(channels) - 1)
        if any(size % divisor for size in grid):
            raise ValueError(
                f"grid {tuple(grid)} is not divisible by {divisor}: use samples "
                "of another size, or fewer levels (backbone.options.channels)"
            )
        self.time = TimeEmbedding(embedding)
        self.condition = ConditionEmbedding(condition, embedding)
        self.context = ConditionTokens(condition, embedding)
        self.stem = PatchStem(sample_channels, channels[0], (patch,) * n)
        crossed = embedding if self.context.fields else 0

        def level(depth: int, widths: list[int]) -> Level:
            attends = depth >= len(channels) - attention
            return Level(
                [ResidualBlock(n, w, channels[depth], embedding, dropout) for w in widths],
                [
                    GridAttention(channels[depth], head_channels, crossed)
                    if attends
                    else NoAttention()
                    for _ in widths
                ],
            )

        skips, width = [channels[0]], channels[0]
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for depth, wide in enumerate(channels):
            self.down.append(level(depth, [width] + [wide] * (blocks - 1)))
            skips += [wide] * blocks
            width = wide
            if depth < len(channels) - 1:
                self.shrink.append(convolution(n, wide, wide))
                skips.append(wide)
        self.middle = nn.ModuleList(
            [
                ResidualBlock(n, width, width, embedding, dropout),
                GridAttention(width, head_channels, crossed),
                ResidualBlock(n, width, width, embedding, dropout),
            ]
        )
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for depth in reversed(range(len(channels))):
            inputs = [width] + [channels[depth]] * blocks
            self.up.append(level(depth, [w + skips.pop() for w in inputs]))
            width = channels[depth]
            if depth:
                self.grow.append(convolution(n, width, width))
        self.norm = group_norm(width)
        self.head = PatchHead(width, sample_channels, (patch,) * n)
        if n == 2:  # tensor cores and AMX want channels last; weights so laid out make it so
            self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, t: Tensor, condition: dict[str, Tensor] | None = None) -> Tensor:
        embedding = functional.silu(self.time(t) + self.condition(condition, t))
        context = self.context(condition, t)
        h = self.stem(x)
        skips = [h]
        for depth, level in enumerate(self.down):
            for block, attend in zip(level.blocks, level.attention, strict=True):
                h = attend(block(h, embedding), context)
                skips.append(h)
            if depth < len(self.shrink):
                h = self.shrink[depth](_halve(h))
                skips.append(h)
        before, attend, after = self.middle
        h = after(attend(before(h, embedding), context), embedding)
        for depth, level in enumerate(self.up):
            for block, attend in zip(level.blocks, level.attention, strict=True):
                h = attend(block(torch.cat([h, skips.pop()], dim=1), embedding), context)
            if depth < len(self.grow):
                h = self.grow[depth](_double(h))
        return self.head(functional.silu(self.norm(h)))


def _double(x: Tensor) -> Tensor:
    with own_dtype(x):
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")


def _halve(x: Tensor) -> Tensor:
    pool = {3: functional.avg_pool1d, 4: functional.avg_pool2d, 5: functional.avg_pool3d}
    return pool[x.ndim](x, 2)
