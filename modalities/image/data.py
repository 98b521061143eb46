"""The images to train on: Fashion-MNIST, CIFAR-10 or a folder, standardised batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from modalities.common.fashion_mnist import read_fashion_mnist
from modalities.common.pixels import PixelData
from modalities.common.sets import CaptionedImages, Images, LabelledImages
from modalities.common.text import TextEncoder
from modalities.image.cifar10 import read_cifar10
from modalities.image.folder import read_captioned, read_folder
from scm_core.base.arguments import place
from scm_core.base.distributed import shared
from scm_core.contract.config import Limits
from scm_core.contract.fields import Condition, Label
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.data.batches import channelwise
from scm_core.data.splits import Split, Standardised


@dataclass
class ImageData:
    """Which images to train on, and how they are fed.

    ``name`` is ``fashion_mnist``, ``cifar10`` or ``folder``; ``root`` the folder that holds them.
    With a ``text_encoder``, or a pretrained pipeline that has one, they are a folder of captions.
    ``size`` resizes the shorter side and crops the centre square; ``channels`` (folder only) is 1
    for grey, 3 for RGB, 4 for RGBA; ``flip`` mirrors half of the training images. ``clip`` is what
    an evaluation scores captioned images by.
    """

    name: str = "fashion_mnist"
    root: str | None = place()
    batch_size: int = 128
    workers: int = 0
    size: int | None = None
    channels: int = 3
    flip: bool = False
    text_encoder: str | None = place()
    clip: str | None = place()


class Flipped(Standardised):
    """A split as standardised batches, half of the images mirrored at random."""

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch at once."""
        x, condition = super().__getitems__(indices)
        mirrored = shared(torch.rand, len(x)) < 0.5
        x[mirrored] = x[mirrored].flip(-1)
        return Batch(x, condition)

    @property
    def settled(self) -> BothWays:
        """The same without anything drawn, for an autoencoder, which is given images once."""
        return BothWays(self.split, self.scale, self.shift)


class BothWays(Standardised):
    """A split as standardised batches: all images as they are, and then all of them mirrored."""

    def __len__(self) -> int:
        """Twice the number of images."""
        return 2 * len(self.split)

    def conditions(self, indices: list[int]) -> Condition:
        """Those of a batch alone."""
        return super().conditions([i % len(self.split) for i in indices])

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch at once."""
        x, condition = super().__getitems__([i % len(self.split) for i in indices])
        mirrored = torch.as_tensor(indices) >= len(self.split)
        x[mirrored] = x[mirrored].flip(-1)
        return Batch(x, condition)


class ImageDataModule(PixelData):
    """The training and held-out images."""

    grid, kind = 2, "images"
    sets = ("fashion_mnist", "cifar10", "folder")

    def __init__(
        self,
        config: ImageData,
        limits: Limits | None = None,
        encoder: TextEncoder | None = None,
        *,
        plain: bool = False,
    ) -> None:
        """Check the configuration; nothing is read before ``setup()``. With an ``encoder`` images
        have captions, else labels. ``plain`` samples are pixels from -1 to 1 times sigma_data, as a
        pretrained network knows them."""
        super().__init__(config, ["size"], limits)
        self.encoder, self.plain = encoder, plain
        self.training = Flipped if config.flip else Standardised

    def read(self) -> tuple[Split, Split]:
        """Both splits of the set that is named."""
        c = self.config
        if self.encoder:
            of_files = c.root, c.size, c.channels, self.limits
            train, test, self.condition = read_captioned(*of_files, self.encoder)
            self.identity = {"images": [train.identity, test.identity], "flip": c.flip}
            return train, test
        if c.name == "folder":
            train, test, names = read_folder(c.root, c.size, c.channels, self.limits)
        else:
            known = {"fashion_mnist": read_fashion_mnist, "cifar10": read_cifar10}
            train, test, names = known[c.name](c.root, c.size)
        self.condition = {"label": Label(len(names), names)}
        self.identity = {"images": [train.identity, test.identity], "flip": c.flip}
        return train, test

    def measure(self, train: LabelledImages | CaptionedImages) -> dict[str, Any]:
        """Mean and std of each channel."""
        mean, std = channel_statistics(train.images)
        if self.plain:
            mean, std = [0.0] * len(mean), [1.0] * len(std)
        return {"mean": mean, "std": std, "source": "folder" if self.encoder else self.config.name}

    def standardise(self, statistics: dict[str, Any]) -> None:
        """Serve samples by these statistics, which say where black and white are."""
        super().standardise(statistics)
        mean, std = channelwise(statistics, self.grid)
        self.bounds = tuple((end - mean) / std * SIGMA_DATA for end in (-1.0, 1.0))


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
