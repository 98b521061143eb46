"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from scm_core.errors import UserError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path``, whose folder is made, that takes its place once all is written.

    Nothing of it is left where that fails; OSError when the disk refuses. Processes that write one
    file do not disturb each other.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        os.replace(part, path)
    except SafetensorError as error:  # which is how safetensors says that the disk refuses
        raise OSError(str(error)) from error
    finally:
        part.unlink(missing_ok=True)


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


def write_text(path: Path, text: str) -> None:
    """Write a text; UserError when the disk refuses."""
    with replacing(path) as part:
        part.write_text(text)
