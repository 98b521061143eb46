"""Shared models: a folder of them, or one of the hub, which is downloaded once."""

from __future__ import annotations

from pathlib import Path

from scm_core.base.errors import UserError, first_line

PREFIX = "hub:"
STUDENT = "student.safetensors"
NEEDS = "the hub needs the package huggingface_hub: pip install 'scm-core[hub]'"


def find(name: str) -> Path:
    """The student in a folder, or of `hub:OWNER/NAME`, which is downloaded once."""
    if not name.startswith(PREFIX):
        return Path(name) / STUDENT
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(NEEDS) from None
    patterns = ["*.safetensors", "*.json"]
    try:
        folder = snapshot_download(name.removeprefix(PREFIX), allow_patterns=patterns)
    except Exception as error:  # the hub and the network fail in many ways
        raise UserError(f"{name} cannot be downloaded: {first_line(error)}") from error
    return Path(folder) / STUDENT
