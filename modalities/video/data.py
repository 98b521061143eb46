"""The clips to train on: moving garments or video files, standardised batch by batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from modalities.common.pixels import PixelData
from modalities.common.text import TextEncoder
from modalities.video.folder import read_folder
from modalities.video.settings import VideoData
from modalities.video.sprites import read_sprites
from modalities.video.ucf101 import read_ucf101
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.data.cache import CACHE
from scm_core.data.splits import Split

MEASURED = 1000  # clips by which mean and standard deviation are measured


class VideoDataModule(PixelData):
    """The training and held-out clips."""

    grid = 3
    sets = ("sprites", "folder", "ucf101")

    def __init__(
        self,
        config: VideoData,
        limits: Limits | None = None,
        cache: Path = CACHE,
        encoder: TextEncoder | None = None,
    ) -> None:
        """Check the configuration; nothing is read before ``setup()``. With an ``encoder`` clips
        are those of a folder, and have captions."""
        super().__init__(config, ["frames", "size", "clips", "stride"], limits)
        if not 0 < config.fps < math.inf:
            raise UserError(f"data.fps={config.fps:g} must be above 0 and finite.")
        self.cache, self.encoder = cache / "videos", encoder

    def read(self) -> tuple[Split, Split]:
        """Both splits of the set that is named."""
        if self.encoder:
            read = read_folder(self.config, self.cache, self.limits, self.encoder)
            train, test, self.identity = read
        elif self.config.name == "sprites":
            train, test, self.identity = read_sprites(self.config)
        else:
            reader = {"folder": read_folder, "ucf101": read_ucf101}[self.config.name]
            train, test, self.identity = reader(self.config, self.cache, self.limits)
        self.condition = train.schema
        return train, test

    def measure(self, train: Split) -> dict[str, Any]:
        """Mean and std of each channel, by `MEASURED` clips, and how they are shown."""
        few = torch.arange(0, len(train), 1 + len(train) // MEASURED)
        parts = []
        for part in few.split(8):  # as floats all of them might not fit into the memory
            values = (train.media(part).float() / 127.5 - 1).transpose(0, 1).flatten(1).double()
            parts.append(torch.stack([values.mean(1), values.square().mean(1)]) * len(part))
        mean, square = torch.stack(parts).sum(0) / len(few)
        return {
            "mean": mean.tolist(),
            "std": (square - mean.square()).clamp(min=1e-6).sqrt().tolist(),
            "fps": self.config.fps,
            "source": "folder" if self.encoder else self.config.name,
        }
