"""Weights and soundfonts that lie inside other packages, which need not be importable."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def packaged(package: str, *parts: str) -> Path | None:
    """The path of a file inside an installed package, None where the package is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent.joinpath(*parts)
