"""The images to train on: Fashion-MNIST, CIFAR-10 or a folder, standardised batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modalities.common.fashion_mnist import read_fashion_mnist
from modalities.common.pixels import Shown, Standardised
from modalities.common.sets import Images, Split
from modalities.image.cifar10 import read_cifar10
from modalities.image.folder import read_folder
from scm_core.base.arguments import place
from scm_core.base.distributed import shared
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.contract.fields import Condition, Label
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.data.batches import channelwise, in_random_order, loader

GRID = 2  # dimensions of an image
NAMES = ("fashion_mnist", "cifar10", "folder")


@dataclass
class ImageData:
    """Which images to train on, and how they are fed.

    ``name`` is ``fashion_mnist``, ``cifar10`` or ``folder``; ``root`` the folder that holds them.
    ``size`` resizes the shorter side and crops the centre square; ``channels`` (folder only) is 1
    for grey, 3 for RGB, 4 for RGBA; ``flip`` mirrors half of the training images.
    """

    name: str = "fashion_mnist"
    root: str | None = place()
    batch_size: int = 128
    workers: int = 0
    size: int | None = None
    channels: int = 3
    flip: bool = False


class Flipped(Standardised):
    """A split as standardised batches, half of the images mirrored at random."""

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch at once."""
        x, condition = super().__getitems__(indices)
        mirrored = shared(torch.rand, len(x)) < 0.5
        x[mirrored] = x[mirrored].flip(-1)
        return Batch(x, condition)


class ImageDataModule:
    """The training and held-out images; after ``setup()`` it states its shape and statistics.

    ``shape`` is (C, H, W), ``condition`` the schema, ``statistics`` mean and std of u8/127.5 - 1
    for each channel of the training split, which also hold for the held-out split.
    """

    shape: tuple[int, ...]
    condition: dict[str, Label]
    statistics: dict[str, Any]

    def __init__(self, config: ImageData, limits: Limits | None = None) -> None:
        """Check the configuration; nothing is read before ``setup()``."""
        if config.name not in NAMES:
            raise UserError(f"data.name={config.name} is none of {', '.join(NAMES)}.")
        if config.batch_size < 1:
            raise UserError(f"data.batch_size={config.batch_size} must be at least 1.")
        if config.size is not None and config.size < 1:
            raise UserError(f"data.size={config.size} must be at least 1.")
        self.config, self.limits = config, limits or Limits()
        self._ready = False

    def setup(self, stage: str | None = None) -> None:
        """Read both splits and measure the training split; a second call does nothing."""
        if self._ready:
            return
        train, test, names = self._read()
        if len(train.labels) < self.config.batch_size:
            raise UserError(
                f"The training split has {len(train.labels)} images, fewer than "
                f"data.batch_size={self.config.batch_size}; choose a smaller batch size."
            )
        self.shape = tuple(train.images[[0]].shape[1:])
        self.condition = {"label": Label(len(names), names)}
        mean, std = channel_statistics(train.images)
        self.splits = train, test
        self.standardise({"mean": mean, "std": std, "source": self.config.name})
        self._ready = True

    def standardise(self, statistics: dict[str, Any]) -> None:
        """Serve samples by these statistics."""
        self.statistics, (train, test) = statistics, self.splits
        mean, std = channelwise(statistics, GRID)
        self.bounds = tuple((end - mean) / std * SIGMA_DATA for end in (-1.0, 1.0))
        kind = Flipped if self.config.flip else Standardised
        self.train_set = kind(train, statistics, GRID)
        self.test_set = Standardised(test, statistics, GRID)

    def train_dataloader(self) -> DataLoader:
        """Shuffled full batches of the training split."""
        return self._loader(self.train_set, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The held-out split in order, down to its last image."""
        return self._loader(self.test_set)

    def real(self, split: str) -> Iterator[tuple[Tensor, Condition]]:
        """Batches of uint8 images and their labels, of ``train`` (shuffled) or ``test``."""
        if split == "train":
            return iter(self._loader(in_random_order(Shown(self.train_set.split))))
        return iter(self._loader(Shown(self.test_set.split)))

    @property
    def identity(self) -> dict[str, Any]:
        """What the images of either split are, and whether they are mirrored."""
        return {"images": [split.identity for split in self.splits], "flip": self.config.flip}

    def _read(self) -> tuple[Split, Split, tuple[str, ...]]:
        c = self.config
        if c.name == "folder":
            return read_folder(c.root, c.size, c.channels, self.limits)
        return {"fashion_mnist": read_fashion_mnist, "cifar10": read_cifar10}[c.name](
            c.root, c.size
        )

    def _loader(self, images: Dataset, **options: bool) -> DataLoader:
        return loader(images, self.config.batch_size, self.config.workers, **options)


def channel_statistics(images: Images) -> tuple[list[float], list[float]]:
    """Mean and std of u8/127.5 - 1 per channel, by a histogram of at most about 100,000 images.

    A channel that never varies (an alpha that is always opaque) gets std 1, so x is 0 there.
    """
    counts = 0
    chosen = torch.arange(0, len(images), 1 + len(images) // 100_000)
    for indices in chosen.split(1024):
        parts = images[indices].transpose(0, 1).flatten(1)
        counts += torch.stack([torch.bincount(part, minlength=256) for part in parts]).double()
    share = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = share @ values
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    return mean.tolist(), torch.where(std > 0, std, 1.0).tolist()
