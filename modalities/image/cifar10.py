"""CIFAR-10, read by torchvision."""

from __future__ import annotations

from pathlib import Path

import torch

from modalities.common.downloads import downloading
from modalities.common.sets import LabelledImages, split_of
from scm_core.data.cache import CACHE


def read_cifar10(
    root: str | None, size: int | None
) -> tuple[LabelledImages, LabelledImages, tuple[str, ...]]:
    """CIFAR-10's training split, test split and class names, read (and checked) by torchvision.

    Raises UserError when it can be neither found in ``root`` nor downloaded.
    """
    import torchvision

    folder = Path(root) if root else CACHE
    splits = []
    for train in (True, False):
        with downloading(
            "CIFAR-10", "put cifar-10-python.tar.gz into a folder named by data.root=."
        ):
            found = torchvision.datasets.CIFAR10(str(folder), train=train, download=True)
        images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        splits.append(split_of(images, torch.tensor(found.targets), size))
    return splits[0], splits[1], tuple(found.classes)
