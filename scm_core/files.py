"""Text files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from scm_core.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write beside ``path``, making its folder, and rename; UserError when the disk refuses."""
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
