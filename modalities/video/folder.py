"""Any folder of video files: class = subfolder, cut into clips; unusable files are skipped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torchvision.transforms.v2 import functional

from scm_core.cache import CACHE, Table, cached
from scm_core.conditioning import Condition, Label
from scm_core.errors import UserError
from scm_core.folders import Classes, Skipped, classified, identity, in_threads, report
from scm_core.limits import Limits, container, frames
from scm_core.shards import File

log = logging.getLogger(__name__)

SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".gif"}
VERSION = 1  # of the preparation: another one makes other clips


class Files:
    """One split of a folder's clips, uint8 (B, 3, T, H, W)."""

    def __init__(self, clips: Tensor, label: Tensor, names: tuple[str, ...]) -> None:
        """Serve these clips (N, 3, T, H, W) and their classes, int64 (N,)."""
        self.kept, self.label = clips, label
        self.schema = {"label": Label(len(names), names)}

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.label)

    def media(self, chosen: Tensor) -> Tensor:
        """The clips at these places."""
        return self.kept[chosen]

    def condition(self, chosen: Tensor) -> Condition:
        """Their classes."""
        return {"label": self.label[chosen]}


Splits = tuple[Files, Files, dict[str, Any]]


def read_folder(
    config: Any, cache: Path = CACHE / "videos", limits: Limits | None = None
) -> Splits:
    """Training clips, held-out clips, and all that they depend on; class = subfolder.

    UserError for a folder that is missing, empty, or mixed; see ``read_files`` for the rest.
    """
    if not config.root:
        raise UserError("data.name=folder needs the folder of videos: data.root=.")
    folder = Path(config.root).expanduser()
    return read_files(folder, *classified(folder, SUFFIXES, "video"), config, cache, limits)


def read_files(
    folder: Path,
    classes: Classes,
    held: set[File],
    config: Any,
    cache: Path = CACHE / "videos",
    limits: Limits | None = None,
) -> Splits:
    """Clips of the files of each class, training and held-out, and all that they depend on.

    A file is resampled to ``config.fps``, its centre square resized to ``config.size``, and cut
    into clips of ``config.frames`` that start every ``config.stride`` frames. Held out are whole
    files. Those that are broken or too short are named in a warning and skipped; UserError when
    more than 1 % are broken, or none is left.
    """
    paths = [path for files in classes.values() for path in files]
    settings = {key: getattr(config, key) for key in ("fps", "size", "frames", "stride")}
    limits = limits or Limits()
    whole = {"version": VERSION, **settings, **identity(folder, paths), "limits": asdict(limits)}
    table, facts = cached(cache, whole, lambda: _prepared(folder, paths, config, limits))
    report(folder, facts["skipped"], len(paths), "video")
    file = table["file"].long()
    label = torch.tensor([i for i, files in enumerate(classes.values()) for _ in files])[file]
    test = torch.tensor([path in held for path in paths])[file]
    if test.all() or not test.any():
        raise UserError(f"{folder} has too few videos to train on and to hold some out.")
    names = tuple(classes)
    train, test = (Files(table["clips"][part], label[part], names) for part in (~test, test))
    return train, test, whole


def read_frames(path: File, fps: float, size: int, limits: Limits | None = None) -> Tensor:
    """A file's frames at ``fps`` a second, upright, centre square: uint8 (T, 3, size, size).

    Each instant shows the frame that a player would show then, whatever rate the file has, be it
    variable. What comes before the end of a truncated file is kept. Raises whatever the codec
    raises when there is nothing to decode, ValueError when there are no pictures in it or it
    exceeds a limit.
    """
    limits, squares = limits or Limits(), []
    with container(path, limits) as opened:
        if not opened.streams.video:
            raise ValueError("it has no pictures")
        try:
            for frame, times in _shown(frames(opened, "video", limits), fps):
                limits.check(bytes=3 * size * size * (len(squares) + times))
                limits.check_square(frame.width, frame.height, size)
                picture = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                square = _square(torch.from_numpy(picture.copy()).permute(2, 0, 1), size)
                squares += [square] * times
        except av.FFmpegError as error:
            if not squares:
                raise
            log.warning("%s is used up to where it breaks off: %s", path, error.strerror)
    if not squares:
        raise ValueError("it has no pictures")
    return torch.stack(squares)


def _shown(decoded: Iterator[Any], fps: float) -> Iterator[tuple[Any, int]]:
    """Each frame that is shown at a multiple of 1 / fps, and at how many of them."""
    last, begin, count, usual = None, 0.0, 0, 0.0
    for frame in decoded:
        now = frame.time if frame.time is not None else begin + count / fps
        if last is None:
            begin = now
        else:
            usual = now - last.time if last.time is not None else usual
            due = max(0, round((now - begin) * fps) - count)
            if due:
                yield last, due
            count += due
        last = frame
    if last is not None:
        yield last, max(1, round(usual * fps))


def _square(picture: Tensor, size: int) -> Tensor:
    shrunk = functional.resize(picture, [size], antialias=True)
    return functional.center_crop(shrunk, [size, size])


def _prepared(folder: Path, paths: list[File], config: Any, limits: Limits) -> Table:
    stride = config.stride or config.frames

    def attempt(path: File) -> Tensor | Skipped:
        try:
            frames = read_frames(path, config.fps, config.size, limits)
        except Exception as error:  # codecs raise all kinds of errors on damaged files
            return Skipped(getattr(error, "strerror", None) or str(error), broken=True)
        if len(frames) < config.frames:
            return Skipped(f"{len(frames)} frames are too few for {config.frames}", broken=False)
        return frames.unfold(0, config.frames, stride).permute(0, 1, 4, 2, 3).contiguous()

    skipped, parts, file = [], [], []
    results = track(in_threads(attempt, paths), "decoding videos", total=len(paths), transient=True)
    for i, result in enumerate(results):
        if isinstance(result, Skipped):
            skipped.append([str(paths[i].relative_to(folder)), *result])
            continue
        parts.append(result)
        file += [i] * len(result)
    if not parts:
        report(folder, skipped, len(paths), "video")
        raise UserError(f"{folder} has no video that can be used: all are too short.")
    table = {"clips": torch.cat(parts), "file": torch.tensor(file, dtype=torch.int32)}
    return table, {"skipped": skipped}
