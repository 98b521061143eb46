"""Any folder of video files: class = subfolder, cut into clips; unusable files are skipped."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor

from modalities.common.captions import conditioned, stated
from modalities.common.text import TextEncoder
from modalities.video.settings import VideoData
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.contract.fields import Condition, Schema
from scm_core.data.captions import Captions, captioned
from scm_core.data.embeddings import Embeddings
from scm_core.data.folders import Classes, Skipped, classified, identity
from scm_core.data.limits import container, frames
from scm_core.data.prepared import Joined, Rows, contents, prepare
from scm_core.data.remote import local
from scm_core.data.shards import File
from scm_core.data.splits import Split

log = logging.getLogger(__name__)

SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob"),
    *(".ts", ".mts", ".m2ts", ".wmv", ".asf", ".ogv", ".gif"),
}
VERSION = 3  # of the preparation: another one makes other clips
LATE = 0.2  # of a frame: files round their times, GIFs to hundredths of a second


class Files(Split):
    """One split of a folder's clips, uint8 (B, 3, T, H, W)."""

    def __init__(
        self, clips: Joined, given: Mapping[str, Tensor | Embeddings], part: Tensor, schema: Schema
    ) -> None:
        """Serve a ``part``, bool (N,), of all clips (N, 3, T, H, W) and of what is ``given`` of
        each."""
        self.clips, self.places = clips, part.nonzero()[:, 0]
        self.given, self.schema = given, schema

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.places)

    def media(self, chosen: Tensor) -> Tensor:
        """The clips at these places."""
        return self.clips[self.places[chosen]]

    def condition(self, chosen: Tensor) -> Condition:
        """Their classes, or their captions."""
        return {key: values[self.places[chosen]] for key, values in self.given.items()}


Splits = tuple[Files, Files, dict[str, Any]]


def read_folder(
    config: VideoData, cache: Path, limits: Limits, encoder: TextEncoder | None = None
) -> Splits:
    """Training clips, held-out clips, and all that they depend on; class = subfolder.

    With an ``encoder`` clips have captions instead of classes. UserError for a folder that is
    missing, empty, or mixed; see ``read_files`` for the rest.
    """
    if not config.root:
        raise UserError("data.name=folder needs the folder of videos: data.root=.")
    folder = local(config.root)
    if encoder is None:
        return read_files(folder, *classified(folder, SUFFIXES, "video"), config, cache, limits)
    classes, held, captions = captioned(folder, SUFFIXES, "video")
    return read_files(folder, classes, held, config, cache, limits, captions, encoder)


def read_files(
    folder: Path,
    classes: Classes,
    held: set[File],
    config: VideoData,
    cache: Path,
    limits: Limits,
    captions: Captions | None = None,
    encoder: TextEncoder | None = None,
) -> Splits:
    """Clips of the files of each class, training and held-out, and all that they depend on.

    A file is resampled to ``config.fps``, its centre square resized to ``config.size``, and cut
    into clips of ``config.frames`` that start every ``config.stride`` frames. Held out are whole
    files. Those that are broken or too short are named in a warning and skipped; UserError when
    more than 1 % are broken, or none is left.
    """
    paths = [path for files in classes.values() for path in files]
    about = {key: getattr(config, key) for key in ("fps", "size", "frames", "stride")}
    settings = {**about, "version": VERSION, "limits": asdict(limits)}
    tables = prepare(folder, paths, partial(_clips, config, limits), settings, cache, "video")
    used = [paths[i] for rows in tables for i in rows["file"].tolist()]
    of_files = folder, classes, held
    schema, given, test = conditioned(*of_files, captions, used, "video", encoder)
    clips = Joined([rows["clips"] for rows in tables])
    train, test = (Files(clips, given, part, schema) for part in (~test, test))
    files = identity(folder, contents(paths, tables), classes, held)
    return train, test, {**about, "files": files, **stated(given, encoder)}


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
            stream = opened.streams.video[0]
            rate, wide = stream.average_rate or fps, float(stream.sample_aspect_ratio or 1)
            decoded, ordered = frames(opened, "video", limits), opened.format.name != "avi"
            for frame, times in _shown(decoded, fps, 1 / float(rate), ordered):
                limits.check(bytes=3 * size * size * (len(squares) + times))
                limits.check_square(round(wide * frame.width), frame.height, size)
                squares += [_square(frame, wide, size)] * times
        except av.FFmpegError as error:
            if not squares:
                raise
            log.warning("%s is used up to where it breaks off: %s", path, error.strerror)
    if not squares:
        raise ValueError("it has no pictures")
    return torch.stack(squares)


def _shown(
    decoded: Iterator[Any], fps: float, usual: float, ordered: bool
) -> Iterator[tuple[Any, int]]:
    """Each frame that is on the screen at a multiple of 1 / fps, and at how many of them.

    ``usual`` is the seconds between two frames, for those without a time of their own, or with that
    of the one before; the next time that is later holds again. Where the clock goes back, it goes
    on from there. Not ``ordered`` is an AVI, which gives times out of order to frames that are
    stored out of order: they have none either.
    """
    last, before, begin, now, count, ahead, gap = None, None, 0.0, 0.0, 0, 0.0, usual
    for frame in decoded:
        time = frame.time
        if last is None:
            begin = now = time or 0.0
        else:
            own = time is not None and (time != before if ordered else time > now)
            if own and ordered and before is not None and time < before:
                own, ahead = False, now + usual - time
            shown = max(now, time + ahead) if own else now + usual
            gap, now = shown - now or gap, shown
            due = math.ceil((now - begin) * fps - LATE) - count
            if due > 0:
                yield last, due
                count += due
        last, before = frame, before if time is None else time
    due = math.ceil((now + gap - begin) * fps - LATE) - count
    if last is not None and (due > 0 or not count):
        yield last, max(due, 1)


def _square(frame: Any, wide: float, size: int) -> Tensor:
    """A frame's upright centre square, uint8 (3, size, size), of pixels ``wide`` times as wide."""
    from torchvision.transforms.v2 import functional  # two seconds: only to read data

    picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    height, width = frame.height, wide * frame.width
    scale = size / min(height, width)
    shape = [max(size, int(scale * side)) for side in (height, width)]
    shrunk = functional.center_crop(functional.resize(picture, shape, antialias=True), [size, size])
    return shrunk.rot90(round(frame.rotation / 90), (1, 2))


def _clips(config: VideoData, limits: Limits, path: File) -> Rows | Skipped:
    """A file cut into clips, uint8 (n, 3, T, H, W)."""
    frames = read_frames(path, config.fps, config.size, limits)
    if len(frames) < config.frames:
        return Skipped(f"{len(frames)} frames are too few for {config.frames}", broken=False)
    clips = frames.unfold(0, config.frames, config.stride or config.frames)
    return {"clips": clips.permute(0, 1, 4, 2, 3).contiguous()}
