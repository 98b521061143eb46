"""Between standardised samples and pictures: the image decoder has nothing to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scm_core.media import image_grid, write_png
from scm_core.modality import SIGMA_DATA


class ImageDecoder:
    """Media are uint8 images (B, C, H, W); samples x have mean 0 and std sigma_data.

    ``exact`` is True: decoding gives back the very image that was encoded.
    """

    exact = True

    def __init__(self, statistics: dict[str, Any]) -> None:
        """Keep the per-channel mean and std of u8/127.5 - 1 that the data module measured."""
        self.mean, self.std = (
            torch.tensor(statistics[key], dtype=torch.float32).view(-1, 1, 1)
            for key in ("mean", "std")
        )

    def encode(self, media: Tensor) -> Tensor:
        """Uint8 images (B, C, H, W) to x float32 of the same shape, on the images' device."""
        mean, std = self.mean.to(media.device), self.std.to(media.device)
        return (media.float() / 127.5 - 1 - mean) / std * SIGMA_DATA

    def decode(self, x: Tensor) -> Tensor:
        """Samples x (B, C, H, W) to uint8 images, rounded and clamped; inverts ``encode``."""
        mean, std = self.mean.to(x.device), self.std.to(x.device)
        values = (x.float() / SIGMA_DATA * std + mean + 1) * 127.5
        return values.round().clamp(0, 255).to(torch.uint8)

    def save(self, media: Tensor, path: str | Path) -> Path:
        """Write one uint8 image (C, H, W) as ``path``.png and return where it lies."""
        return write_png(media.permute(1, 2, 0), f"{path}.png")

    def preview(self, media: Tensor) -> Tensor:
        """One picture of the whole batch: a grid, uint8 (H, W, 3)."""
        return image_grid(media)
