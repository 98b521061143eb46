"""Files packed into shards: tar files as WebDataset has them, whose members are read in place.

A shard stands for the files in it, as if they lay beside it. So folders and shards give the same
classes, splits and order, any sample can be read at any time, and a run goes on in mid-epoch.
"""

from __future__ import annotations

import errno
import io
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from scm_core.base.errors import UserError, reason
from scm_core.data.layout import walk

NUMBERED = re.compile(r"(\d+)-of-(\d+)")


class Inside:
    """What lies in another file and answers, by its `path`, some of what a path is asked."""

    __slots__ = ()
    path: Path

    @property
    def name(self) -> str:
        """Its last part."""
        return self.path.name

    @property
    def parent(self) -> Path:
        """Its folder."""
        return self.path.parent

    def relative_to(self, folder: Path) -> Path:
        """Its path within a folder."""
        return self.path.relative_to(folder)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class Member(Inside):
    """A file in a shard; what readers ask of a path they can ask of it.

    ``path`` is where it would lie if its shard were unpacked, ``start`` its first byte in the
    shard, ``modified`` in seconds.
    """

    shard: Path
    path: Path
    start: int
    size: int
    modified: float

    @property
    def suffix(self) -> str:
        """Its ending."""
        return self.path.suffix

    def stat(self) -> SimpleNamespace:
        """Its size and date, of what ``os.stat`` gives."""
        return SimpleNamespace(st_size=self.size, st_mtime_ns=int(1e9 * self.modified))

    def open(self, mode: str = "rb") -> io.BytesIO:
        """All of its bytes; OSError where the shard has been cut short since it was listed."""
        with self.shard.open(mode) as file:
            file.seek(self.start)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(errno.ESTALE, "its shard has become shorter", str(self.shard))
        return io.BytesIO(content)


File = Path | Member


def members(folder: Path) -> Iterator[Member]:
    """The files in all shards of a folder and its subfolders.

    Raises UserError for a shard that is not a whole, uncompressed tar file, or holds what two
    files would be, and for a set of which a shard is missing.
    """
    shards = sorted(path for path in walk(folder) if path.suffix == ".tar")
    _check_complete(shards)
    seen: dict[Path, Path] = {}
    for shard in shards:
        for member in read(shard):
            if member.path in seen:
                raise UserError(f"{seen[member.path]} and {shard} both hold {member}.")
            seen[member.path] = shard
            yield member


def read(shard: Path) -> list[Member]:
    """The files in a whole shard; links and devices are none. UserError as in `members`."""
    found = []
    try:
        with tarfile.open(shard, "r:") as tar:
            end = 0
            for info in tar:
                if info.offset < end or info.size < 0:
                    raise ValueError("its members overlap")
                if info.isfile() and not info.issparse():
                    found.append(_member(shard, info))
                end = info.offset_data
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise ValueError("it breaks off")
    except (tarfile.TarError, OSError, ValueError) as error:
        said = "is no whole, uncompressed tar file ({}); pack it again."
        if getattr(error, "errno", None) not in (None, errno.EINVAL):  # which damaged numbers give
            said = "cannot be read now ({}): fix that, and give the same command again."
        raise UserError(f"{shard} {said.format(reason(error))}") from error
    return found


def _member(shard: Path, info: tarfile.TarInfo) -> Member:
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{info.name} would lie outside of it")
    if not math.isfinite(1e9 * info.mtime):
        raise ValueError(f"{info.name} has a date that is none")
    return Member(shard, shard.parent / name, info.offset_data, info.size, info.mtime)


def _check_complete(shards: list[Path]) -> None:
    """Where shards are numbered i-of-n, all n of them must be there."""
    there: dict[tuple[Path, int], set[int]] = {}
    for shard in shards:
        if match := NUMBERED.fullmatch(shard.stem):
            there.setdefault((shard.parent, int(match[2])), set()).add(int(match[1]))
    for (folder, total), numbers in there.items():
        if len(numbers) < total:
            raise UserError(f"{folder} has {len(numbers)} of {total} shards; pack it to its end.")
