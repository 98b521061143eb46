"""How a file was made: a note in the file itself.

In a PNG's text, a GIF's comment, the tags of WAV and FLAC, the metadata of MP4. It is a note, not a
proof: whoever edits the file can edit it too, unless it is signed.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import struct
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.data.limits import container, picture

KEY = "scm-core"  # of a PNG's text; elsewhere the facts are the comment
PICTURES = {".png", ".gif"}
MANIFEST = b"jumdc2pa\0"  # in every format, where a C2PA manifest begins

Facts = dict[str, Any]
Sign = Callable[[BytesIO, str], bytes]  # of a file and its name


class Signer(Protocol):
    """Signs what is written."""

    def sign(self, file: BytesIO, name: str, facts: Facts) -> bytes:
        """A file that is to have that name, with a signature under it and the facts."""


_stated: ContextVar[tuple[str | None, Sign | None]] = ContextVar("stated", default=(None, None))


@contextlib.contextmanager
def stating(facts: Facts, signer: Signer | None = None) -> Iterator[None]:
    """Files that `media` writes inside say this, which is plain containers, signed."""
    sign = partial(signer.sign, facts=facts) if signer else None
    token = _stated.set((json.dumps({KEY: facts}), sign))
    try:
        yield
    finally:
        _stated.reset(token)


def comment() -> str | None:
    """What a file that is written now is to say, as ASCII, if anything."""
    return _stated.get()[0]


def signature() -> Sign | None:
    """What signs a file that is written now, if anything."""
    return _stated.get()[1]


def info_chunk(text: str) -> bytes:
    """A comment as the LIST chunk of a WAV file."""
    value = text.encode() + b"\0"
    value += b"\0" * (len(value) % 2)
    body = b"INFO" + b"ICMT" + struct.pack("<I", len(value)) + value
    return b"LIST" + struct.pack("<I", len(body)) + body


def read(path: str | Path) -> Facts:
    """What a file says of itself; UserError where it cannot be read or says nothing."""
    path = Path(path)
    try:
        text = _of_picture(path) if path.suffix.lower() in PICTURES else _of_container(path)
    except Exception as error:  # codecs raise all kinds of errors on damaged files
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as a picture, sound or clip: {reason}") from error
    with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return dict(json.loads(text)[KEY].items())
    raise UserError(f"{path} does not say how it was made")


def has_manifest(path: str | Path) -> bool:
    """Whether a file has a C2PA manifest, right or wrong; UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(MANIFEST) >= 0
    except ValueError:  # an empty file
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _of_picture(path: Path) -> str | None:
    with picture(path, Limits()) as image:
        found = getattr(image, "text", {}).get(KEY) or image.info.get("comment")
    return found.decode(errors="replace") if isinstance(found, bytes) else found


def _of_container(path: Path) -> str | None:
    with container(path, Limits()) as opened:
        return opened.metadata.get("comment")
