"""Between standardised samples and pictures: the image codec has nothing to learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from modalities.common.pixels import PixelCodec
from scm_core.data.media import image_grid, write_png


class ImageCodec(PixelCodec):
    """Media are uint8 images (B, C, H, W); decoding gives back what was encoded."""

    def __init__(self, statistics: dict[str, Any]) -> None:
        """Keep the per-channel mean and std of u8/127.5 - 1 that the data module measured."""
        super().__init__(statistics, grid=2)

    def save(self, media: Tensor, path: str | Path) -> Path:
        """Write one uint8 image (C, H, W) as ``path``.png and return where it lies."""
        return write_png(media.permute(1, 2, 0), f"{path}.png")

    def preview(self, media: Tensor) -> Tensor:
        """One picture of the whole batch: a grid, uint8 (H, W, 3)."""
        return image_grid(media)
