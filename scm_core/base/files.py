"""Files that are written atomically, and folders that one process has to itself."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from scm_core.base.errors import UserError


def check_room(out: Path) -> None:
    """UserError where a folder, `out`, cannot be made or written to: ask before the work."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"out={out} cannot be made: {there} is no folder that may be written to")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path``, whose folder is made, that takes its place once all is on the disk.

    Nothing of it is left where that fails; OSError when the disk refuses. Processes that write one
    file do not disturb each other.
    """
    # In two containers, or on two machines, processes may have one number.
    part = path.with_name(f".{path.stem}.{os.getpid()}-{os.urandom(4).hex()}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        _sync(part)  # or else a power cut might leave the name of a file without its content
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # which some file systems refuse
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until the disk has what was written into a file, or which files a folder has."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """As `whole`, with a UserError when the disk refuses."""
    try:
        with whole(path) as part:
            yield part
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some room or write elsewhere"
        ) from error


def remove_parts(path: Path) -> None:
    """Remove what killed processes left of ``path``, which no other process writes now."""
    for part in path.parent.glob(f".{path.stem}.*.part{path.suffix}"):
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text; UserError when the disk refuses."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    """Copy a file's content; UserError when the disk refuses."""
    with replacing(target) as part:
        shutil.copyfile(source, part)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash of a network's weights and buffers, whatever their dtype."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whose bytes depend on nothing but what it holds.

    UserError when the disk refuses.
    """
    with replacing(path) as part:
        part.touch()
        mode = part.stat().st_mode  # as the umask says, for which safetensors does not ask
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:  # which is how it says that the disk refuses
            raise OSError(str(error)) from error
        part.chmod(mode)
        _sort_header(part)


def _sort_header(path: Path) -> None:
    """Put the header of a safetensors file in order: that of its metadata is random."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        ordered = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        file.seek(8)
        file.write(ordered.encode().ljust(size))


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """One process of this machine after the other, where the folder can have a lock."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            fcntl.lockf(stack.enter_context((folder / ".turn").open("a")), fcntl.LOCK_EX)
        yield


class Lock:
    """A folder that one process has to itself, until it dies or leaves the `with` block.

    Where the file system knows no locks, everybody may have it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: IO[str] | None = None

    def take(self) -> None:
        """Make the folder, and take it; UserError, which says who, where another process has it."""
        if self.file:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = (self.folder / ".lock").open("a+")
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}") from error
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, not its forks
        except (BlockingIOError, PermissionError):
            self.file.seek(0)
            raise UserError(
                f"{self.folder} is in use by {self.file.read() or 'another process'}: wait until "
                "that has ended, or choose another out="
            ) from None
        except OSError:
            return
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {platform.node()}")
        self.file.flush()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()
