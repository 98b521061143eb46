"""Fashion-MNIST, from the disk or by torchvision's download."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modalities.common.downloads import downloading
from modalities.common.sets import LabelledImages, split_of
from scm_core.base.errors import UserError
from scm_core.data.cache import CACHE

FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), Path("data/fashion-mnist"))
IDX = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
LARGEST = 1 << 26  # bytes of an unpacked idx file; the training images are 47 million
ADVICE = "run `apt-get install dataset-fashion-mnist` or name its folder with data.root=."
NAMES = (
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


def read_fashion_mnist(
    root: str | None, size: int | None
) -> tuple[LabelledImages, LabelledImages, tuple[str, ...]]:
    """Fashion-MNIST's training split, test split and class names.

    Looked for in ``root`` alone if given, else the system package, data/fashion-mnist, and
    torchvision's download. Raises UserError when it is nowhere or damaged.
    """
    folder = _fashion_mnist(root)
    train, test = (_idx_split(folder, part, size) for part in ("train", "t10k"))
    return train, test, NAMES


def find_fashion_mnist(root: str | None) -> Path:
    """The folder of Fashion-MNIST; UserError where it is in none of the places looked into."""
    if root:
        given = Path(root)
        places = (given, given / "raw", given / "FashionMNIST" / "raw")
    else:
        places = (*FOLDERS, _downloaded())
    for folder in places:
        if folder == _downloaded() and not all((folder / name).is_file() for name in IDX):
            continue  # torchvision was interrupted: it unpacks what is whole
        if _idx_file(folder, IDX[0]):
            return folder
    if root:
        raise UserError(
            f"data.root={root} holds no train-images-idx3-ubyte.gz of Fashion-MNIST; "
            "for a folder of your own add data.name=folder."
        )
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

    with downloading("Fashion-MNIST", ADVICE):
        torchvision.datasets.FashionMNIST(str(CACHE), download=True)
    return _downloaded()


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def _idx_split(folder: Path, part: str, size: int | None) -> LabelledImages:
    images = _read_idx(folder, f"{part}-images-idx3-ubyte")
    labels = _read_idx(folder, f"{part}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max() >= len(NAMES):
        raise UserError(f"The {part} images and labels in {folder} do not belong together.")
    return split_of(images[:, None], labels.long(), size)


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
