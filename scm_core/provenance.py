"""How a file was made: `python -m scm_core.provenance FILE ...` prints it.

Every picture, sound and clip that `scm_core.sample` writes says which model drew it, by its hash,
and from which seed, steps and condition: in a PNG's text, a GIF's comment, the tags of WAV and
FLAC, the metadata of MP4. It is a note, not a proof: whoever edits the file can edit it too.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from scm_core import cli
from scm_core.errors import UserError
from scm_core.limits import Limits, container, picture

KEY = "scm-core"  # of a PNG's text; elsewhere the facts are the comment
PICTURES = {".png", ".gif"}

_facts: ContextVar[str | None] = ContextVar("facts", default=None)

Facts = dict[str, Any]


@contextlib.contextmanager
def stating(facts: Facts) -> Iterator[None]:
    """Files that `scm_core.media` writes inside say this, which is plain containers."""
    token = _facts.set(json.dumps({KEY: facts}))
    try:
        yield
    finally:
        _facts.reset(token)


def comment() -> str | None:
    """What a file that is written now is to say, as ASCII, if anything."""
    return _facts.get()


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
        raise UserError(f"{path} cannot be read: {reason}") from error
    with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError, RecursionError):
        return dict(json.loads(text)[KEY].items())
    raise UserError(f"{path} does not say how it was made")


def main(arguments: list[str]) -> None:
    """Print what each of the files says."""
    if not arguments:
        raise UserError("which file? python -m scm_core.provenance FILE ...")
    for name in arguments:
        facts = read(name)
        cli.console.print(name, style="bold", soft_wrap=True)
        for key, value in facts.items():
            cli.console.print(f"  {key}: {value}", soft_wrap=True)


def _of_picture(path: Path) -> str | None:
    with picture(path, Limits()) as image:
        found = getattr(image, "text", {}).get(KEY) or image.info.get("comment")
    return found.decode(errors="replace") if isinstance(found, bytes) else found


def _of_container(path: Path) -> str | None:
    with container(path, Limits()) as opened:
        return opened.metadata.get("comment")


if __name__ == "__main__":
    cli.run(main, __doc__)
