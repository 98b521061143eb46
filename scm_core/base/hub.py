"""What lies on the hub of Hugging Face, downloaded once."""

from __future__ import annotations

from pathlib import Path

from scm_core.base.errors import UserError, first_line

NEEDS = "the hub needs the package huggingface_hub: pip install 'scm-core[hub]'"


def downloaded(name: str, complaint: str, **patterns: list[str]) -> Path:
    """The folder of OWNER/NAME, with those of its files that `patterns` choose, as
    `huggingface_hub.snapshot_download` calls them.

    UserError, a `complaint` and its reason, where it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(NEEDS) from None
    try:
        return Path(snapshot_download(name, **patterns))
    except Exception as error:  # the hub and the network fail in many ways
        raise UserError(f"{complaint}: {first_line(error)}") from error
