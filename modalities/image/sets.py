"""Fashion-MNIST and CIFAR-10 as uint8 tensors, from the disk or by torchvision's download."""

from __future__ import annotations

import contextlib
import gzip
import math
import socket
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scm_core.base.errors import UserError, first_line
from scm_core.contract.fields import Condition
from scm_core.data.batches import stated
from scm_core.data.cache import CACHE
from scm_core.data.limits import unpacking

FASHION_FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("data/fashion-mnist"))
LARGEST = 1 << 26  # bytes of an unpacked idx file; the training images are 47 million
ADVICE = "run `apt-get install dataset-fashion-mnist` or name its folder with data.root=."
FASHION_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)


class Images(Protocol):
    """What holds a split's images: a tensor, or something that decodes files when indexed."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, indices: Tensor | list[int]) -> Tensor:
        """The uint8 images (B, C, H, W) at these places."""


@dataclass(frozen=True)
class Split:
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


def read_fashion_mnist(root: str | None, size: int | None) -> tuple[Split, Split, tuple[str, ...]]:
    """Fashion-MNIST's training split, test split and class names.

    Looked for in ``root`` alone if given, else the system package, data/fashion-mnist, and
    torchvision's download. Raises UserError when it is nowhere or damaged.
    """
    folder = _fashion_mnist(root)
    train, test = (_idx_split(folder, part, size) for part in ("train", "t10k"))
    return train, test, FASHION_NAMES


def read_cifar10(root: str | None, size: int | None) -> tuple[Split, Split, tuple[str, ...]]:
    """CIFAR-10's training split, test split and class names, read (and checked) by torchvision.

    Raises UserError when it can be neither found in ``root`` nor downloaded.
    """
    import torchvision

    folder = Path(root) if root else CACHE
    splits = []
    for train in (True, False):
        with _download("CIFAR-10", "put cifar-10-python.tar.gz into a folder named by data.root=."):
            found = torchvision.datasets.CIFAR10(str(folder), train=train, download=True)
        images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        splits.append(_split(images, torch.tensor(found.targets), size))
    return splits[0], splits[1], tuple(found.classes)


def find_fashion_mnist(root: str | None) -> Path:
    """The folder of Fashion-MNIST; UserError where it is in none of the places looked into."""
    if root:
        given = Path(root)
        places = (given, given / "raw", given / "FashionMNIST" / "raw")
    else:
        places = (*FASHION_FOLDERS, _downloaded())
    for folder in places:
        if _idx_file(folder, "train-images-idx3-ubyte"):
            return folder
    if root:
        raise UserError(f"data.root={root} holds no train-images-idx3-ubyte.gz of Fashion-MNIST.")
    raise UserError(f"Fashion-MNIST is downloaded at first use; offline, {ADVICE}")


def _downloaded() -> Path:
    return CACHE / "FashionMNIST" / "raw"


def _fashion_mnist(root: str | None) -> Path:
    """Where it is, or was downloaded to."""
    try:
        return find_fashion_mnist(root)
    except UserError:
        if root:
            raise
    import torchvision

    with _download("Fashion-MNIST", ADVICE):
        torchvision.datasets.FashionMNIST(str(CACHE), download=True)
    return _downloaded()


@contextlib.contextmanager
def _download(name: str, advice: str) -> Iterator[None]:
    """Let torchvision download without hanging; turn its failure into a sentence with advice."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        with contextlib.redirect_stdout(sys.stderr), unpacking():
            yield
    except (OSError, RuntimeError, tarfile.TarError) as error:
        reason = first_line(error).rstrip(".:")
        raise UserError(f"{name} could not be downloaded ({reason}); {advice}") from error
    finally:
        socket.setdefaulttimeout(patience)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def _idx_split(folder: Path, part: str, size: int | None) -> Split:
    images = _read_idx(folder, f"{part}-images-idx3-ubyte")
    labels = _read_idx(folder, f"{part}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max() >= len(FASHION_NAMES):
        raise UserError(f"The {part} images and labels in {folder} do not belong together.")
    return _split(images[:, None], labels.long(), size)


def _split(images: Tensor, labels: Tensor, size: int | None) -> Split:
    """What is resized differs by rounding between machines, so what it is made of identifies it."""
    return Split(squared(images, size), labels, [stated(images), stated(labels)])


def _read_idx(folder: Path, name: str) -> Tensor:
    """A uint8 tensor from an idx file: two zero bytes, type 8, rank, big-endian sizes, values."""
    path = _idx_file(folder, name)
    if path is None:
        raise UserError(f"{folder} holds no {name}.gz of Fashion-MNIST.")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = np.frombuffer(file.read(LARGEST + 1), np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again.") from error
    rank = int(content[3]) if content[:3].tolist() == [0, 0, 8] and len(content) > 3 else 0
    if len(content) > LARGEST:
        raise UserError(f"{path} is larger than any file of Fashion-MNIST; fetch it again.")
    start = 4 + 4 * rank
    shape = content[4:start].view(">u4").tolist() if rank and len(content) >= start else []
    if not shape or min(shape) < 1 or len(content) != start + math.prod(shape):
        raise UserError(f"{path} is not a whole idx file of bytes; fetch it again.")
    return torch.from_numpy(content[start:].reshape(shape).copy())
