"""Data that lie elsewhere: what a URL names is copied into the cache once, and read from there."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from rich.progress import track

from scm_core.base.errors import UserError, first_line
from scm_core.base.files import whole
from scm_core.data.cache import CACHE, hashed


def local(root: str, cache: Path = CACHE / "remote") -> Path:
    """The folder of that name, or a copy of what fsspec finds at a URL (s3://, gs://, https://).

    A copy that was interrupted resumes with the first file that is missing; files that have changed
    there are another copy. UserError where they cannot be listed or read.
    """
    if "://" not in root:
        return Path(root)
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(root)
        found = {name: _version(system, name) for name in sorted(system.find(path))}
        folder = cache / hashed([root, list(found.items())])
        targets = {name: folder / _within(name, path) for name in found}
        missing = [name for name, target in targets.items() if not target.exists()]
        for name in track(missing, f"copying {root}", transient=True, disable=not missing):
            _copy(system, name, targets[name])
    except UserError:
        raise
    except Exception as error:  # every file system fails in its own ways
        raise UserError(f"data.root={root} cannot be copied: {first_line(error)}") from error
    if not found:
        raise UserError(f"data.root={root} has no files")
    return folder


def _version(system: Any, name: str) -> Any:
    """What differs where a file has changed; fsspec takes those of the web for unchangeable."""
    if "http" not in system.protocol:
        return system.ukey(name)
    about = system.info(name)
    return [system.ukey(name), *(about.get(key) for key in ("size", "ETag", "Last-Modified"))]


def _within(name: str, path: str) -> PurePosixPath:
    """A file's path within what was asked for; of one file alone its name."""
    relative = PurePosixPath(name.removeprefix(path).strip("/") or PurePosixPath(name).name)
    if ".." in relative.parts or relative.is_absolute():
        raise UserError(f"{name} would lie outside of {path}")
    return relative


def _copy(system: Any, name: str, target: Path) -> None:
    with whole(target) as part:
        system.get_file(name, str(part))
