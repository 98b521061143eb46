"""The clips to train on: moving garments or video files, standardised batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modalities.common.pixels import Shown, Standardised
from modalities.video.folder import Splits, read_folder
from modalities.video.sprites import read_sprites
from modalities.video.ucf101 import read_ucf101
from scm_core.base.arguments import place
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.contract.fields import Condition, Schema
from scm_core.data.batches import in_random_order, loader

READERS = {"folder": read_folder, "ucf101": read_ucf101}
NAMES = ("sprites", *READERS)
GRID = 3  # dimensions of a clip
MEASURED = 1000  # clips by which mean and standard deviation are measured


@dataclass
class VideoData:
    """Which clips to train on, and how they are fed.

    ``name`` is ``sprites``, ``folder`` or ``ucf101``; ``root`` the folder of Fashion-MNIST, of
    video files, or of UCF101. A clip is ``frames`` frames of ``size`` x ``size`` pixels, shown at
    ``fps`` a second. Of sprites ``clips`` are composed for training, by ``seed``; a file's clips
    start every ``stride`` frames (default: one begins where the last one ends).
    """

    name: str = "sprites"
    root: str | None = place()
    batch_size: int = 128
    workers: int = 0
    frames: int = 16
    size: int = 32
    fps: float = 8.0
    clips: int = 20_000
    seed: int = 0
    stride: int | None = None


class VideoDataModule:
    """The training and held-out clips; after ``setup()`` it states its shape and statistics.

    ``shape`` is (3, T, H, W), ``condition`` the schema, ``statistics`` mean and std of u8/127.5 - 1
    for each channel of the training split, ``identity`` all that the clips depend on.
    """

    shape: tuple[int, ...]
    condition: Schema
    statistics: dict[str, Any]
    identity: Any

    def __init__(self, config: VideoData, limits: Limits | None = None) -> None:
        """Check the configuration; nothing is read before ``setup()``."""
        if config.name not in NAMES:
            raise UserError(f"data.name={config.name} is none of {', '.join(NAMES)}.")
        for key in ("batch_size", "frames", "size", "clips", "stride"):
            value = getattr(config, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value} must be at least 1.")
        if config.fps <= 0:
            raise UserError(f"data.fps={config.fps:g} must be above 0.")
        self.config, self.limits = config, limits or Limits()
        self._ready = False

    def setup(self, stage: str | None = None) -> None:
        """Find both splits and measure the training split; a second call does nothing."""
        if self._ready:
            return
        train, test, self.identity = self._read()
        if len(train) < self.config.batch_size:
            raise UserError(
                f"The training split has {len(train)} clips, fewer than "
                f"data.batch_size={self.config.batch_size}; choose a smaller batch size."
            )
        few = torch.arange(0, len(train), 1 + len(train) // MEASURED)
        values = train.media(few).float() / 127.5 - 1
        self.shape = tuple(values.shape[1:])
        self.condition = train.schema
        channels = values.transpose(0, 1).flatten(1)
        statistics = {
            "mean": channels.mean(1).tolist(),
            "std": channels.std(1).clamp(min=1e-3).tolist(),
            "fps": self.config.fps,
            "source": self.config.name,
        }
        self.splits = train, test
        self.standardise(statistics)
        self._ready = True

    def standardise(self, statistics: dict[str, Any]) -> None:
        """Serve samples by these statistics."""
        self.statistics = statistics
        self.train_set, self.test_set = (
            Standardised(split, statistics, GRID) for split in self.splits
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled full batches of the training split."""
        return self._loader(self.train_set, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The held-out split in order, down to its last clip."""
        return self._loader(self.test_set)

    def real(self, split: str) -> Iterator[tuple[Tensor, Condition]]:
        """Batches of uint8 clips and their conditions, of ``train`` (shuffled) or ``test``."""
        if split == "train":
            return iter(self._loader(in_random_order(Shown(self.train_set.split))))
        return iter(self._loader(Shown(self.test_set.split)))

    def _read(self) -> Splits:
        if self.config.name == "sprites":
            return read_sprites(self.config)
        return READERS[self.config.name](self.config, limits=self.limits)

    def _loader(self, clips: Dataset, **options: bool) -> DataLoader:
        return loader(clips, self.config.batch_size, self.config.workers, **options)
