"""What pictures and clips share: uint8 pixels as standardised samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scm_core.contract.spec import SIGMA_DATA, Codec
from scm_core.data.batches import channelwise
from scm_core.data.splits import SplitData


class PixelData(SplitData):
    """Splits of uint8 media (B, C, *grid) with ``grid`` dimensions.

    ``statistics`` are mean and std of u8/127.5 - 1 per channel of the training split.
    """

    grid: int

    def affine(self, statistics: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The two affine maps of the statistics, folded into one."""
        mean, std = channelwise(statistics, self.grid)
        return SIGMA_DATA / (127.5 * std), -SIGMA_DATA * (1 + mean) / std


class PixelCodec(Codec):
    """Media are uint8 (B, C, *grid); samples x have mean 0 and std sigma_data per channel.

    Decoding gives back the very pixels that were encoded. A subclass says how they are saved and
    shown.
    """

    def __init__(self, statistics: dict[str, Any], grid: int) -> None:
        """Keep the per-channel mean and std of u8/127.5 - 1; the grid has ``grid`` dimensions."""
        self.mean, self.std = channelwise(statistics, grid)

    def encode(self, media: Tensor) -> Tensor:
        """Uint8 media to x float32 of the same shape, on their device."""
        mean, std = self.mean.to(media.device), self.std.to(media.device)
        return (media.float() / 127.5 - 1 - mean) / std * SIGMA_DATA

    def decode(self, x: Tensor) -> Tensor:
        """Samples x to uint8 media, rounded and clamped; inverts ``encode``."""
        mean, std = self.mean.to(x.device), self.std.to(x.device)
        values = (x.float() / SIGMA_DATA * std + mean + 1) * 127.5
        return values.round().clamp(0, 255).to(torch.uint8)

    traced = decode
