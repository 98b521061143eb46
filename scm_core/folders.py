"""Any folder of files as classes: class = subfolder or what a pattern finds in the file's name."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from scm_core.errors import UserError

log = logging.getLogger(__name__)

HELD_OUT = 0.05
BROKEN = 0.01

Read = TypeVar("Read")

Classes = dict[str, list[Path]]


class Skipped(NamedTuple):
    """Why a file is left out, and whether that is because it is damaged."""

    reason: str
    broken: bool


def classified(
    folder: Path, suffixes: set[str], kind: str, pattern: str | None = None
) -> tuple[Classes, set[Path]]:
    """Class name to sorted files, and which of them are held out; ``kind`` is what people call one.

    Held out are the files in ``test/`` or ``val/`` beside ``train/``, or else 5 % of each class,
    chosen by a hash of the file's name. Files directly in the folder are one class, named as the
    folder. ``pattern`` is a regular expression whose one group, searched in a file's path within
    the folder, is its class; files that it does not match are left out. Raises UserError for a
    folder that is missing, without any such file, or mixed.
    """
    if not folder.is_dir():
        raise UserError(f"data.root={folder} is not a folder.")
    find = _by_pattern(pattern) if pattern else _by_subfolder
    train = folder / "train"
    test = next((f for f in (folder / "test", folder / "val") if f.is_dir()), None)
    if not train.is_dir() or test is None:
        alone = [child for child in folder.iterdir() if child.is_dir()] == [train]
        classes = find(train if alone else folder, suffixes, kind)
        held = {path for files in classes.values() for path in _held_out(files, folder)}
    else:
        classes, others = find(train, suffixes, kind), find(test, suffixes, kind)
        if strange := sorted(set(others) - set(classes)):
            raise UserError(f"{test} has classes that {train} lacks: {', '.join(strange)}.")
        held = {path for files in others.values() for path in files}
        classes = {name: files + others.get(name, []) for name, files in classes.items()}
    if list(classes) == ["."]:
        classes = {folder.resolve().name: classes["."]}
    return classes, held


def in_threads(read: Callable[[Path], Read], paths: Sequence[Path]) -> Iterator[Read]:
    """What ``read`` makes of each file, in order, by as many threads as CPUs."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), 256):
            yield from pool.map(read, paths[start : start + 256])


def identity(folder: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """What identifies the files of a folder without reading them: names, sizes and dates."""
    files = [(path.relative_to(folder), path.stat()) for path in paths]
    return {
        "folder": str(folder.resolve()),
        "files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in files],
    }


def report(folder: Path, skipped: Sequence[Sequence[Any]], total: int, kind: str) -> None:
    """Name the files that were skipped, (path within the folder, reason, broken) each.

    Raises UserError with their list when more than 1 % of all files are broken.
    """
    for path, reason, _ in skipped:
        log.warning("skipped %s: %s", folder / path, reason)
    if skipped:
        log.warning("skipped %d of %d %ss", len(skipped), total, kind)
    broken = [path for path, _, bad in skipped if bad]
    if len(broken) > BROKEN * total:
        raise UserError(
            f"{len(broken)} of {total} {kind}s are broken, more than {BROKEN:.0%}; "
            f"mend or remove them: {', '.join(broken)}."
        )


def _by_subfolder(folder: Path, suffixes: set[str], kind: str) -> Classes:
    """Classes by subfolder; files directly in the folder are one class, named "."."""
    classes = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and (files := _files(child, suffixes)):
            classes[child.name] = files
    loose = [path for path in sorted(folder.iterdir()) if _wanted(path, suffixes)]
    if loose and classes:
        raise UserError(
            f"{folder} has {kind}s beside class folders ({loose[0].name}); put each into a class."
        )
    if not loose and not classes:
        names = ", ".join(sorted(suffix.lstrip(".") for suffix in suffixes))
        raise UserError(f"{folder} has no {kind} (of {names}).")
    return classes or {".": loose}


def _by_pattern(pattern: str) -> Callable[[Path, set[str], str], Classes]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.pattern={pattern} is not a regular expression: {error}.") from error
    if expression.groups != 1:
        raise UserError(f"data.pattern={pattern} needs one group (...), which is the class.")

    def find(folder: Path, suffixes: set[str], kind: str) -> Classes:
        classes: Classes = {}
        for path in _files(folder, suffixes):
            if (match := expression.search(path.relative_to(folder).as_posix())) and match[1]:
                classes.setdefault(match[1], []).append(path)
        if not classes:
            raise UserError(f"{folder} has no {kind} that data.pattern={pattern} matches.")
        return dict(sorted(classes.items()))

    return find


def _files(folder: Path, suffixes: set[str]) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if _wanted(path, suffixes)]


def _wanted(path: Path, suffixes: set[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def _held_out(files: list[Path], folder: Path) -> list[Path]:
    """The 5 % of a class with the lowest hashes, at least one of two or more files."""
    names = {path: path.relative_to(folder).as_posix().encode() for path in files}
    ranked = sorted(files, key=lambda path: hashlib.sha256(names[path]).digest())
    return ranked[: max(round(HELD_OUT * len(files)), min(1, len(files) - 1))]
