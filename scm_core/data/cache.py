"""Tensors that take long to make, kept on disk under a hash of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from scm_core.base.errors import UserError
from scm_core.base.files import save_tensors

log = logging.getLogger(__name__)

Table = tuple[dict[str, Tensor], dict[str, Any]]


def user_folder() -> Path:
    """The user's folder for caches: scm-core in ``$XDG_CACHE_HOME``, or else in ``~/.cache``.

    Where that cannot be used there is a warning, and another one among temporary files.
    """
    above = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        wanted = (above if above.is_absolute() else Path.home() / ".cache") / "scm-core"
    except RuntimeError:  # no HOME, and nobody of this number among the users
        wanted = None
    if wanted and _usable(wanted):
        return wanted
    other = _temporary()
    log.warning(
        "%s cannot be used, so what takes long to make is kept in %s: XDG_CACHE_HOME=FOLDER "
        "names a better place",
        wanted or "your home folder",
        other,
    )
    return other


def _usable(folder: Path) -> bool:
    """Whether a folder can be read, or made."""
    if os.path.isdir(folder):  # Path's own raises where a folder above is closed
        return os.access(folder, os.R_OK | os.X_OK)
    above = next(parent for parent in folder.parents if os.path.isdir(parent))
    return os.access(above, os.W_OK | os.X_OK)


def _temporary() -> Path:
    """A folder of this user's own among temporary files, or nowhere."""
    try:
        folder = Path(tempfile.gettempdir()) / f"scm-core-{os.getuid()}"
        folder.mkdir(0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            return folder
    except OSError:
        pass
    return Path(os.devnull) / "scm-core"


CACHE = user_folder()


def place(folder: Path, identity: Any) -> Path:
    """The file in ``folder`` for what depends on ``identity``, plain containers."""
    return folder / f"{hashed(identity)}.safetensors"


def hashed(identity: Any) -> str:
    """A short hash of plain containers."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


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
    try:
        if not path.exists():
            return None
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
