"""Labelled images as uint8 tensors: what is common to all sets of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from scm_core.contract.fields import Condition
from scm_core.data.batches import stated
from scm_core.data.embeddings import Embeddings
from scm_core.data.splits import Split


class Images(Protocol):
    """What holds a split's images: a tensor, or something that decodes files when indexed."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, indices: Tensor | list[int]) -> Tensor:
        """The uint8 images (B, C, H, W) at these places."""


@dataclass(frozen=True)
class LabelledImages(Split):
    """One split of a set: its images, their labels, int64 (N,), and what they are anywhere."""

    images: Images
    labels: Tensor
    identity: Any

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def media(self, chosen: Tensor) -> Tensor:
        """The uint8 images (B, C, H, W) at these places."""
        return self.images[chosen]

    def condition(self, chosen: Tensor) -> Condition:
        """Their labels."""
        return {"label": self.labels[chosen]}


@dataclass(frozen=True)
class CaptionedImages(Split):
    """One split of a set: its images, their captions as values, and what they are anywhere."""

    images: Images
    prompts: Embeddings
    identity: Any

    def __len__(self) -> int:
        """The number of images."""
        return len(self.prompts)

    def media(self, chosen: Tensor) -> Tensor:
        """The uint8 images (B, C, H, W) at these places."""
        return self.images[chosen]

    def condition(self, chosen: Tensor) -> Condition:
        """Their captions."""
        return {"prompt": self.prompts[chosen]}


def squared(images: Tensor, size: int | None) -> Tensor:
    """Uint8 images (..., C, H, W), the shorter side resized to ``size``, and their centre square.

    What is transparent of RGBA lends its colour to no pixel. None leaves all as it is.
    """
    if size is None:
        return images
    if images.shape[-3] != 4 or min(images.shape[-2:]) == size:
        return _square(images, size)
    colour, alpha = images.float().split((3, 1), -3)
    colour, alpha = _square(torch.cat([colour * alpha, alpha], -3), size).split((3, 1), -3)
    colour = torch.where(alpha > 0, colour / alpha, 0)
    return torch.cat([colour, alpha], -3).round().clamp(0, 255).to(torch.uint8)


def _square(images: Tensor, size: int) -> Tensor:
    from torchvision.transforms.v2 import functional  # two seconds: only to read data

    return functional.center_crop(functional.resize(images, [size], antialias=True), [size, size])


def split_of(images: Tensor, labels: Tensor, size: int | None) -> LabelledImages:
    """Images uint8 (N, C, H, W) and labels int64 (N,), by what they are made of.

    What is resized differs by rounding between machines, so that is no part of it.
    """
    return LabelledImages(squared(images, size), labels, [stated(images), stated(labels)])
