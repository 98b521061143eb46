"""Between samples (B, C, *grid) and features on a coarser grid of 1, 2 or 3 dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from scm_core.networks.layers.time import positional_embedding


class Conv3d(nn.Conv3d):
    """Pads two frames by hand: over a depth of two that it pads itself, oneDNN's gradient of the
    weights in bf16 (3.11, in torch 2.12) reads memory that nobody wrote, and may give NaN."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != 2 or not self.padding[0]:
            return super().forward(x)
        depth, *padding = self.padding
        x = functional.pad(x, (0, 0, 0, 0, depth, depth))
        return functional.conv3d(x, self.weight, self.bias, padding=(0, *padding))


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: Conv3d}


def convolution(dimensions: int, inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
    """A convolution over 1, 2 or 3 dimensions that keeps the grid's size."""
    return CONVOLUTIONS[dimensions](inputs, outputs, kernel, padding=kernel // 2)


def fold(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Space to depth: (B, C, *grid) to (B, C * prod(patch), *[g / p])."""
    batch, channels, *grid = x.shape
    split = [size for g, p in zip(grid, patch, strict=True) for size in (g // p, p)]
    x = x.reshape(batch, channels, *split)
    coarse = [2 + 2 * i for i in range(len(grid))]
    inner = [3 + 2 * i for i in range(len(grid))]
    x = x.permute(0, 1, *inner, *coarse)
    return x.flatten(1, 1 + len(grid))


def unfold(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Depth to space, the inverse of `fold`."""
    batch, channels, *coarse = x.shape
    n = len(patch)
    volume = math.prod(patch)
    x = x.reshape(batch, channels // volume, *patch, *coarse)
    interleaved = [axis for i in range(n) for axis in (2 + n + i, 2 + i)]
    x = x.permute(0, 1, *interleaved)
    return x.reshape(
        batch, channels // volume, *[c * p for c, p in zip(coarse, patch, strict=True)]
    )


class PatchStem(nn.Module):
    """Samples to features: patches folded into channels, then a convolution of kernel 3."""

    def __init__(self, channels: int, features: int, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.patch = patch
        volume = math.prod(patch)
        self.convolution = convolution(len(patch), channels * volume, features)

    def forward(self, x: Tensor) -> Tensor:
        if any(g % p for g, p in zip(x.shape[2:], self.patch, strict=True)):
            raise ValueError(f"grid {tuple(x.shape[2:])} does not split into patches {self.patch}")
        return self.convolution(fold(x, self.patch))


class PatchHead(nn.Module):
    """Features to samples: a convolution of kernel 3 across patch borders, then unfolded.

    The convolution is what keeps block edges out of the picture; it starts at zero, so F does too.
    """

    def __init__(self, features: int, channels: int, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.patch = patch
        volume = math.prod(patch)
        self.convolution = convolution(len(patch), features, channels * volume)
        nn.init.zeros_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        return unfold(self.convolution(x), self.patch)


def grid_positions(grid: tuple[int, ...], channels: int, device: torch.device) -> Tensor:
    """Fixed sine-cosine positions of a grid's cells, (prod(grid), channels), for any grid."""
    share = channels // (2 * len(grid)) * 2
    axes = torch.meshgrid(
        *[torch.arange(size, device=device, dtype=torch.float32) for size in grid], indexing="ij"
    )
    position = torch.cat([positional_embedding(axis.flatten(), share) for axis in axes], dim=-1)
    return torch.nn.functional.pad(position, (0, channels - position.shape[-1]))
