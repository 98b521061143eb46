"""What the image tests share."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from modalities.image.data import ImageData, ImageDataModule


def prepared(**config) -> ImageDataModule:
    """A data module that is ready to be read."""
    data = ImageDataModule(ImageData(**config))
    data.setup()
    return data


def raw(root: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The idx files read once more, independently."""
    images = gzip.decompress(Path(root, f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress(Path(root, f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    shaped = np.frombuffer(images, np.uint8).reshape(-1, 1, 28, 28).copy()
    return torch.from_numpy(shaped), torch.tensor(list(labels))


def everything(loader: DataLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """All samples and labels of a loader."""
    batches = list(loader)
    x = torch.cat([batch.x for batch in batches])
    return x, torch.cat([batch.condition["label"] for batch in batches])
