"""What pictures and clips share: uint8 pixels as standardised samples, and data sets of them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from scm_core.contract.fields import Condition
from scm_core.contract.spec import SIGMA_DATA, Batch, Codec
from scm_core.data.batches import channelwise


class Split(Protocol):
    """One split of a labelled set."""

    def __len__(self) -> int:
        """The number of pictures or clips."""

    def media(self, chosen: Tensor) -> Tensor:
        """Those at these places, uint8 (B, C, *grid)."""

    def condition(self, chosen: Tensor) -> Condition:
        """Their labels, int64 (B,) each."""


class PixelCodec(Codec):
    """Media are uint8 (B, C, *grid); samples x have mean 0 and std sigma_data a channel.

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


class Shown(Dataset):
    """A split as it is: batches of uint8 media (B, C, *grid) and their conditions."""

    def __init__(self, split: Split) -> None:
        """Serve all of the split."""
        self.split = split

    def __len__(self) -> int:
        """The number of pictures or clips."""
        return len(self.split)

    def __getitem__(self, index: int) -> Any:
        """One as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Condition]:
        """A whole batch at once."""
        chosen = torch.as_tensor(indices)
        return self.split.media(chosen), self.split.condition(chosen)


class Standardised(Shown):
    """A split as standardised batches: x = (u8 / 127.5 - 1 - mean) / std * sigma_data."""

    def __init__(self, split: Split, statistics: dict[str, Any], grid: int) -> None:
        """Fold the two affine maps of ``statistics`` into one scale and shift per channel."""
        super().__init__(split)
        mean, std = channelwise(statistics, grid)
        self.scale = SIGMA_DATA / (127.5 * std)
        self.shift = -SIGMA_DATA * (1 + mean) / std

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch at once: x float32 (B, C, *grid) and its conditions."""
        media, condition = super().__getitems__(indices)
        return Batch(media.float().mul_(self.scale).add_(self.shift), condition)
