"""Tensors that take long to make, kept on disk under a hash of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from scm_core.errors import UserError
from scm_core.files import save_tensors

log = logging.getLogger(__name__)

CACHE = Path.home() / ".cache" / "scm-core"

Table = tuple[dict[str, Tensor], dict[str, Any]]


def place(folder: Path, identity: Any) -> Path:
    """The file in ``folder`` for what depends on ``identity``, plain containers."""
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{key}.safetensors"


def cached(folder: Path, identity: Any, make: Callable[[], Table]) -> Table:
    """The tensors and plain facts that ``make`` gives, kept in ``folder`` under their identity.

    ``identity`` is all that they depend on, in plain containers.
    """
    path = place(folder, identity)
    table = kept(path)
    if table is None:
        table = make()
        keep(path, table)
    return table


def kept(path: Path) -> Table | None:
    """The tensors and facts in a file of the cache; None where it is absent, or damaged.

    They are mapped from the file: what is not looked at takes no memory.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        log.warning("%s cannot be read (%s) and is made again", path, error)
        return None


def keep(path: Path, table: Table) -> None:
    """Write tensors and facts for `kept`; where that fails it costs a warning."""
    tensors, facts = table
    try:
        save_tensors(path, tensors, {"facts": json.dumps(facts)})
    except UserError as error:
        why = error.__cause__
        log.warning("%s cannot be written: the next run will start over (%s)", path, why)
