"""Any folder of images as a set: class = subfolder, broken files named, skipped and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from modalities.common.captions import prompted
from modalities.common.sets import CaptionedImages, Images, LabelledImages, squared
from modalities.common.text import TextEncoder
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.contract.fields import Schema
from scm_core.data.cache import hashed
from scm_core.data.captions import captioned
from scm_core.data.folders import (
    Classes,
    again,
    attempt,
    classified,
    content,
    identity,
    in_threads,
    labelled,
    report,
    usable,
)
from scm_core.data.limits import picture
from scm_core.data.remote import local
from scm_core.data.shards import File

SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
UPRIGHT = {  # by what EXIF calls the orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MEMORY = 2 << 30  # bytes of decoded images that are kept instead of decoded again


class Files:
    """Images that do not fit in memory: indexed like a tensor, decoded at every access."""

    def __init__(
        self, paths: Sequence[File], size: int | None, channels: int, limits: Limits
    ) -> None:
        """Remember the files; nothing is opened."""
        self.paths, self.how = paths, (size, channels, limits)

    def __len__(self) -> int:
        """The number of files."""
        return len(self.paths)

    def __getitem__(self, indices: Tensor | list[int]) -> Tensor:
        """The uint8 images (B, C, H, W) of these files; UserError where one is gone."""

        def decoded(path: File) -> Tensor:
            return decode_file(path, *self.how)

        return torch.stack([again(decoded, self.paths[int(i)]) for i in indices])


def read_folder(
    root: str | None, size: int | None, channels: int, limits: Limits
) -> tuple[LabelledImages, LabelledImages, tuple[str, ...]]:
    """A folder's training split, held-out split and class names (its subfolders, sorted).

    The held-out split is ``test/`` or ``val/`` beside ``train/``, or else 5 % of each class,
    chosen by a hash of its path. More than 2 GiB of pixels are decoded again at every
    access. Raises UserError for a folder that is missing, empty, mixed, or more than 1 % broken.
    """
    if channels not in MODES:
        raise UserError(f"data.channels={channels} must be 1 (grey), 3 (RGB) or 4 (RGBA).")
    if not root:
        raise UserError("data.name=folder needs the folder of images: data.root=.")
    folder = local(root)
    classes, held = classified(folder, SUFFIXES, "image")
    images, contents = _read_all(folder, _files(classes), size, channels, limits)
    schema, labels, test = labelled(folder, classes, held, list(contents), "image")
    splits = [
        LabelledImages(kept, labels[chosen], identity(folder, there, classes, held))
        for chosen, kept, there in _split(images, contents, test, (size, channels, limits))
    ]
    return splits[0], splits[1], schema["label"].names


def read_captioned(
    root: str | None, size: int | None, channels: int, limits: Limits, encoder: TextEncoder
) -> tuple[CaptionedImages, CaptionedImages, Schema]:
    """A folder's training split, held-out split, and the schema of their captions.

    As `read_folder`, but that subfolders are no classes; UserError for captions that will not do
    (see `data.captions`).
    """
    if channels not in MODES:
        raise UserError(f"data.channels={channels} must be 1 (grey), 3 (RGB) or 4 (RGBA).")
    if not root:
        raise UserError(f"{encoder.key} needs the folder of images and their captions: data.root=.")
    folder = local(root)
    classes, held, captions = captioned(folder, SUFFIXES, "image")
    images, contents = _read_all(folder, _files(classes), size, channels, limits)
    of_captions = folder, classes, held, captions, list(contents), "image", encoder
    schema, prompts, test = prompted(*of_captions)
    splits = []
    for chosen, kept, there in _split(images, contents, test, (size, channels, limits)):
        texts = prompts.at(chosen)
        files = identity(folder, there, classes, held)
        splits.append(
            CaptionedImages(kept, texts, [files, encoder.identity, hashed(texts.captions)])
        )
    return splits[0], splits[1], schema


def _files(classes: Classes) -> list[File]:
    return [path for files in classes.values() for path in files]


def _split(
    images: Tensor | None, contents: dict[File, int], test: Tensor, how: tuple[Any, ...]
) -> Iterator[tuple[Tensor, Images, dict[File, int]]]:
    """Of the training and the held-out split the places, the images, and their files' hashes."""
    paths = list(contents)
    for chosen in (torch.nonzero(~test)[:, 0], torch.nonzero(test)[:, 0]):
        kept = Files([paths[i] for i in chosen], *how) if images is None else images[chosen]
        yield chosen, kept, {paths[i]: contents[paths[i]] for i in chosen}


def decode_file(
    path: File, size: int | None, channels: int, limits: Limits | None = None
) -> Tensor:
    """One file's first frame, upright, as uint8 (C, H, W); what is transparent becomes white.

    Raises whatever the codec raises when the file is damaged, ValueError beyond a limit.
    """
    limits = limits or Limits()
    with picture(path, limits) as opened:
        limits.check_square(opened.width, opened.height, size)
        opened.load()
        image = _upright(opened)
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data and channels != 4:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = torch.from_numpy(np.array(image.convert(MODES[channels])))
    return squared(pixels.view(image.height, image.width, channels).permute(2, 0, 1), size)


def _upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF says, which is right where it holds nonsense beside that."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # EXIF is damaged in as many ways as there are cameras; the pixels are whole
        turn = None
    return image if turn is None else image.transpose(turn)


def _read_all(
    folder: Path, paths: list[File], size: int | None, channels: int, limits: Limits
) -> tuple[Tensor | None, dict[File, int]]:
    """All readable images (N, C, H, W), or None if they exceed MEMORY, and whose they are.

    Beside each of their files stands a hash of its bytes.
    """
    images, shape, readable, skipped = None, None, {}, []

    def read(path: File) -> tuple[Tensor, int]:
        return decode_file(path, size, channels, limits), content(path)

    results = in_threads(partial(attempt, read), paths)
    for i, (image, value) in usable(folder, paths, results, skipped):
        if shape is None:
            shape = image.shape
            if image.numel() * len(paths) <= MEMORY:
                images = torch.empty(len(paths), *shape, dtype=torch.uint8)
        if image.shape != shape:
            raise UserError(
                f"{paths[i]} has another size than {next(iter(readable)).name}; "
                "give all the same with data.size=."
            )
        if images is not None:
            images[len(readable)] = image
        readable[paths[i]] = value
    report(folder, skipped, len(paths), "image")
    return None if images is None else images[: len(readable)], readable
