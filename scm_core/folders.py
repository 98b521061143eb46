"""Any folder of files as classes: class = subfolder or what a pattern finds in the file's name.

A folder that holds none itself may hold them packed (`scm_core.shards`).
"""

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
from scm_core.shards import File, members

log = logging.getLogger(__name__)

HELD_OUT = 0.05
BROKEN = 0.01

Read = TypeVar("Read")

Classes = dict[str, list[File]]
Tree = dict[File, Path]  # files in order, and the path of each in its folder


class Skipped(NamedTuple):
    """Why a file is left out, and whether that is because it is damaged."""

    reason: str
    broken: bool


def classified(
    folder: Path, suffixes: set[str], kind: str, pattern: str | None = None
) -> tuple[Classes, set[File]]:
    """Class name to sorted files, and which of them are held out; ``kind`` is what people call one.

    Held out are the files in ``test/`` or ``val/`` beside ``train/``, or else 5 % of each class,
    chosen by a hash of its path. Files directly in the folder are one class, named as the
    folder. ``pattern`` is a regular expression whose one group, searched in a file's path within
    the folder, is its class; files that it does not match are left out. Raises UserError for a
    folder that is missing, without any such file, or mixed, and for a damaged shard.
    """
    if not folder.is_dir():
        raise UserError(f"data.root={folder} is not a folder.")
    find = _by_pattern(pattern) if pattern else _by_subfolder
    tree = _tree(folder, suffixes)
    for name in ("", "train", "test", "val"):
        if (folder / name).is_dir() and not _subtree(tree, name):
            names = ", ".join(sorted(suffix.lstrip(".") for suffix in suffixes))
            raise UserError(f"{folder / name} has no {kind} (of {names}).")
    train, *others = (_subtree(tree, name) for name in ("train", "test", "val"))
    test = next(filter(None, others), None)
    if not train or not test:
        classes = find(train if len(train) == len(tree) else tree, folder, kind)
        held = {path for files in classes.values() for path in _held_out(files, folder)}
    else:
        classes, others = find(train, folder, kind), find(test, folder, kind)
        if strange := sorted(set(others) - set(classes)):
            raise UserError(
                f"test/ or val/ of {folder} has classes that train/ lacks: {', '.join(strange)}."
            )
        held = {path for files in others.values() for path in files}
        classes = {name: files + others.get(name, []) for name, files in classes.items()}
    if list(classes) == ["."]:
        classes = {folder.resolve().name: classes["."]}
    return classes, held


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files in a folder and its subfolders; links are followed, but not back to ``above``.

    UserError for a folder that cannot be read.
    """
    real = folder.resolve()
    if real in above:
        return
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    for child in children:
        if child.is_dir():
            yield from walk(child, (*above, real))
        elif child.is_file():
            yield child


def in_threads(read: Callable[[File], Read], paths: Sequence[File]) -> Iterator[Read]:
    """What ``read`` makes of each file, in order, by as many threads as CPUs."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), 256):
            yield from pool.map(read, paths[start : start + 256])


def identity(folder: Path, paths: Sequence[File]) -> dict[str, Any]:
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


def _by_subfolder(tree: Tree, folder: Path, kind: str) -> Classes:
    """Classes by subfolder; files directly in the folder are one class, named "."."""
    classes: Classes = {}
    for file, path in tree.items():
        classes.setdefault(path.parts[0] if len(path.parts) > 1 else ".", []).append(file)
    if "." in classes and len(classes) > 1:
        loose = classes["."][0].name
        raise UserError(f"{folder} has {kind}s beside class folders ({loose}); put each into one.")
    return classes


def _by_pattern(pattern: str) -> Callable[[Tree, Path, str], Classes]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.pattern={pattern} is not a regular expression: {error}.") from error
    if expression.groups != 1:
        raise UserError(f"data.pattern={pattern} needs one group (...), which is the class.")

    def find(tree: Tree, folder: Path, kind: str) -> Classes:
        classes: Classes = {}
        for file, path in tree.items():
            if (match := expression.search(path.as_posix())) and match[1]:
                classes.setdefault(match[1], []).append(file)
        if not classes:
            raise UserError(f"{folder} has no {kind} that data.pattern={pattern} matches.")
        return dict(sorted(classes.items()))

    return find


def _tree(folder: Path, suffixes: set[str]) -> Tree:
    def wanted(files: Iterator[File]) -> Tree:
        return {
            file: file.relative_to(folder)
            for file in files
            if file.suffix.lower() in suffixes and not file.name.startswith(".")
        }

    tree = wanted(walk(folder)) or wanted(members(folder))
    return dict(sorted(tree.items(), key=lambda item: item[1]))


def _subtree(tree: Tree, name: str) -> Tree:
    return {f: path.relative_to(name) for f, path in tree.items() if path.is_relative_to(name)}


def _held_out(files: list[File], folder: Path) -> list[File]:
    """The 5 % of a class with the lowest hashes, at least one of two or more files."""
    names = {path: path.relative_to(folder).as_posix().encode() for path in files}
    ranked = sorted(files, key=lambda path: hashlib.sha256(names[path]).digest())
    return ranked[: max(round(HELD_OUT * len(files)), min(1, len(files) - 1))]
