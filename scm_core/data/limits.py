"""Media files that may come from anywhere: what they may be at most, and the one way to open them.

A file is read as what it contains, of the kinds named here alone, whatever its name says: nothing
that points at other files (playlists, edit lists) or starts a program (PostScript) is opened.
"""

from __future__ import annotations

import contextlib
import errno
import tarfile
from collections.abc import Iterator
from typing import Any

from scm_core.contract.config import Limits
from scm_core.data.shards import File, Member

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # as Pillow names them
CONTAINERS = (  # as FFmpeg names them
    *("aac", "aiff", "asf", "au", "avi", "flac", "g722", "gif", "matroska", "mov", "mp3", "mpeg"),
    *("mpegts", "mpegvideo", "ogg", "w64", "wav", "webm"),
)
RATES = (1_000, 1_000_000)  # Hz: beyond them a resampler's filter fills the memory
JUMP = 10.0  # seconds from one picture to the next: a clock that may jump has jumped, says FFmpeg


def _unpack_nothing(*_: Any, **__: Any) -> None:
    raise tarfile.TarError("Python before 3.11.4 does not keep what it unpacks in its folder")


@contextlib.contextmanager
def unpacking() -> Iterator[None]:
    """Inside, what libraries unpack of a tar file stays in its folder, Python's rule from 3.14 on.

    Raises tarfile.TarError for what would not, and for all of it where Python knows no such rule.
    """
    if hasattr(tarfile, "data_filter"):
        rules = {"extraction_filter": staticmethod(tarfile.data_filter)}
    else:
        rules = {"extract": _unpack_nothing, "extractall": _unpack_nothing}
    before = {name: vars(tarfile.TarFile)[name] for name in rules}
    for name, rule in rules.items():
        setattr(tarfile.TarFile, name, rule)
    try:
        yield
    finally:
        for name, rule in before.items():
            setattr(tarfile.TarFile, name, rule)


class Watched:
    """A file for a library to read, which notes the machine's error that the library may hide."""

    def __init__(self, file: Any, name: str) -> None:
        """Of an open file; of its ``name`` libraries look at the ending."""
        self.file, self.name = file, name
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        try:
            return self.file.read(size)
        except OSError as error:
            self.error = self.error or error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go elsewhere; -1 where there is no such place, which damaged bytes may name."""
        try:
            return self.file.seek(offset, whence)
        except ValueError:
            return -1
        except OSError as error:
            if error.errno == errno.EINVAL:
                return -1
            self.error = self.error or error
            raise

    def tell(self) -> int:
        """Where the next bytes lie."""
        return self.file.tell()


@contextlib.contextmanager
def watched(path: File) -> Iterator[Watched]:
    """A file for a library to read.

    Where disk or network refuse, that very OSError is raised at the end, whatever the library made
    of it: it may have taken the bytes for damaged, or for all that there are.
    """
    with path.open("rb") as opened:
        file = Watched(opened, f"file{path.suffix}")
        try:
            yield file
        except Exception:
            if not file.error:
                raise
        if file.error:
            raise file.error


@contextlib.contextmanager
def picture(path: File, limits: Limits) -> Iterator[Any]:
    """A picture's file as Pillow's image, of which nothing is decoded yet.

    Raises ValueError beyond a limit, whatever Pillow raises for a damaged file, and as `watched`.
    """
    from PIL import Image, PngImagePlugin

    limits.check(bytes=path.stat().st_size)
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, limits.pixels)
    # Colour profiles and texts of a megabyte are honest; all of a file's are bounded in any case.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    with watched(path) as file:
        try:
            opened = Image.open(file, formats=PICTURES)
        except Image.DecompressionBombError as error:
            raise ValueError(f"{error} (limits.pixels={limits.pixels})") from error
        with opened:
            limits.check(pixels=opened.width * opened.height)
            yield opened


@contextlib.contextmanager
def container(path: File, limits: Limits) -> Iterator[Any]:
    """A recording's or video's file as PyAV's container.

    Raises ValueError for a packed one beyond `limits.bytes`, which is read as a whole, and for a
    damaged file, or one that is no recording and no video; MemoryError, and as `watched`.
    """
    import av

    options = {
        "format_whitelist": ",".join(CONTAINERS),
        "protocol_whitelist": "file",
        "max_pixels": str(limits.pixels),
    }
    if isinstance(path, Member):
        limits.check(bytes=path.size)
    with watched(path) as file:
        try:
            with av.open(file, options=options) as opened:
                yield opened
        except av.error.MemoryError:
            raise
        except av.FFmpegError as error:  # some are OSErrors, which are of the bytes all the same
            raise ValueError(error.strerror or str(error)) from error


def frames(opened: Any, kind: str, limits: Limits) -> Iterator[Any]:
    """The frames of the first stream of a `kind`, "audio" or "video", within the limits.

    What a header says of lengths counts for nothing. Where the clock of a format that broadcasts
    and concatenates (MPEG-TS, MPEG-PS, Ogg) goes back, or more than 10 s ahead, no time has passed.
    Raises ValueError where limits are exceeded, and whatever PyAV raises where the file is damaged.
    """
    import av

    stream = getattr(opened.streams, kind)[0]
    stream.codec_context.options = {"max_pixels": str(limits.pixels)}
    if kind == "audio":
        decoded = _without_damage(opened.demux(stream))
    elif opened.format.flags & av.format.Flags.ts_discont.value:
        decoded = _without_jumps(opened.decode(stream))
    else:
        decoded = opened.decode(stream)
    seconds, first = 0.0, None
    for count, frame in enumerate(decoded, 1):
        if kind == "audio":
            if not RATES[0] <= frame.sample_rate <= RATES[1]:
                raise ValueError(f"a rate of {frame.sample_rate} Hz is no sound's")
            seconds += frame.samples / frame.sample_rate
        else:
            limits.check(pixels=frame.width * frame.height, frames=count)
            if frame.time is not None:
                first = frame.time if first is None else first
                seconds = frame.time - first
        limits.check(seconds=seconds)
        yield frame


def _without_damage(packets: Iterator[Any]) -> Iterator[Any]:
    """The sound of all packets that can be decoded; the error of others only where none follows.

    Where streams were put together, a tag of the second one lies between them. A picture would
    need what it does not find before it, so videos end there.
    """
    import av

    error = None
    for packet in packets:
        try:
            decoded = packet.decode()
        except av.error.InvalidDataError as caught:
            error = caught
            continue
        if decoded and packet.size:
            error = None
        yield from decoded
    if error:
        raise error


def _without_jumps(decoded: Iterator[Any]) -> Iterator[Any]:
    """Pictures, timed as if a jump of the clock were a step as long as the one before it."""
    last, step, ahead = None, 0, 0
    for frame in decoded:
        if frame.pts is not None:
            found = 0 if last is None else frame.pts - last
            if 0 <= found <= JUMP / frame.time_base:
                step = found
            else:
                ahead += found - step
            last = frame.pts
            frame.pts -= ahead
        yield frame
