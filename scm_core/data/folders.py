"""Any folder of files as classes: class = subfolder or what a pattern finds in the file's name.

A folder that holds none itself may hold them packed (`scm_core.data.shards`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from scm_core.base.distributed import cpus
from scm_core.base.errors import UserError, reason
from scm_core.contract.fields import Label, Schema
from scm_core.data.cache import hashed
from scm_core.data.layout import (
    empty_parts,
    ignored,
    layout,
    tell,
    tell_left_out,
    tell_others,
    walk,
)
from scm_core.data.shards import File, members

log = logging.getLogger(__name__)

HELD_OUT = 0.05
BROKEN = 0.01
ALL = "all"  # the one class of files that lie in no class folder

Read = TypeVar("Read")

Classes = dict[str, list[File]]
Tree = dict[File, Path]  # files in order, and the path of each in its folder


class Skipped(NamedTuple):
    """Why a file is left out, and whether that is because it is damaged."""

    reason: str
    broken: bool


def classified(
    folder: Path,
    suffixes: set[str],
    kind: str,
    pattern: str | None = None,
    by_subfolder: bool = True,
) -> tuple[Classes, set[File]]:
    """Class name to sorted files, and which of them are held out; ``kind`` is what people call one.

    Held out are the files in ``test/`` or else ``val/`` beside ``train/``, by these or other names
    (see `layout`), or else 5 % of each class, chosen by a hash of its path. Files directly
    in the folder are one class, called `ALL`. ``pattern`` is a regular expression whose one
    group, searched in a file's path within the folder, is its class; files that it does not match
    are left out. Neither by a pattern nor ``by_subfolder``, all are of one class. Raises UserError
    for a folder that is missing, without any such file, or mixed, for held-out files without any
    to train on, and for a damaged shard.
    """
    if not folder.is_dir():
        raise UserError(f"data.root={folder} is not a folder.")
    find = _by_pattern(pattern) if pattern else _by_subfolder if by_subfolder else _together
    tree, others = listed(folder, suffixes)
    known = f"{kind} (of {', '.join(sorted(suffix.lstrip('.') for suffix in suffixes))})"
    for name in empty_parts(folder, tree.values()):
        raise UserError(f"{folder / name} has no {known}.")
    found = layout(tree)
    if not pattern and found.untrained:
        raise UserError(
            f"{folder} has {' and '.join(found.untrained)}, which are to be held out, but nothing "
            "to train on beside them: name a folder with train in it, or rename these."
        )
    whole = pattern and found.root != Path()  # as people see it who write a pattern
    paths = {file: tree[file] for file in found.paths} if whole else found.paths
    classes = find(paths, folder, kind)
    held = {file for file, out in found.decided.items() if out}
    trained = {name for name, files in classes.items() if not held.issuperset(files)}
    if strange := sorted(set(classes) - trained):
        raise UserError(
            f"{' and '.join(found.held)} of {folder} has classes that "
            f"{' and '.join(found.trained)} lacks: {', '.join(strange)}."
        )
    for files in classes.values():
        held.update(hold_out([file for file in files if file not in found.decided], folder))
    tell(folder, found)
    loose = list(classes) == ["."]
    if pattern or loose:
        tell_others(others.values(), known)
    else:
        tell_left_out(folder, found.homes, others.values(), set(classes), known)
    if loose:  # not called as the folder, which may be moved or packed
        classes = {found.root.name or ALL: classes["."]}
    return classes, held


def listed(folder: Path, suffixes: set[str]) -> tuple[Tree, Tree]:
    """The files of these endings, beside each other or packed, and all others."""
    for files in (walk(folder), members(folder)):
        paths = {file: file.relative_to(folder) for file in files}
        shown = {file: path for file, path in paths.items() if not any(map(ignored, path.parts))}
        ordered = dict(sorted(shown.items(), key=lambda item: item[1]))
        tree = {f: path for f, path in ordered.items() if path.suffix.lower() in suffixes}
        if tree:
            break
    return tree, {file: path for file, path in ordered.items() if file not in tree}


def in_threads(read: Callable[[File], Read], paths: Sequence[File]) -> Iterator[Read]:
    """What ``read`` makes of each file, in order, by as many threads as CPUs may be used."""
    with ThreadPoolExecutor(cpus()) as pool:
        for start in range(0, len(paths), 256):
            yield from pool.map(read, paths[start : start + 256])


def attempt(read: Callable[[File], Read], file: File) -> Read | Skipped:
    """What ``read`` makes of a file; `Skipped` as broken where its bytes are damaged.

    UserError where disk, network, memory or a missing package refuse: that says nothing of the
    file, which may be read tomorrow and must not be left out today.
    """
    try:
        return read(file)
    except UserError:
        raise
    except Exception as error:  # codecs raise all kinds of errors on damaged files
        if not _of_the_machine(error):
            return Skipped(reason(error), broken=True)
        raise UserError(
            f"{file} cannot be read now ({reason(error)}): fix that, or remove the file, and give "
            "the same command again"
        ) from error


def usable(
    folder: Path,
    paths: Sequence[File],
    results: Iterator[Read | Skipped],
    skipped: list[Sequence[Any]],
) -> Iterator[tuple[int, Read]]:
    """The places of the files that can be used and what was read; others go to ``skipped``."""
    for i, (path, result) in enumerate(zip(paths, results, strict=True)):
        if isinstance(result, Skipped):
            skipped.append([str(path.relative_to(folder)), *result])
        else:
            yield i, result


def labelled(
    folder: Path, classes: Classes, held_out: set[File], used: Sequence[File], kind: str
) -> tuple[Schema, Tensor, Tensor]:
    """The schema of classes, the class of each file that is used, int64 (N,), and whether it is
    held out, bool (N,); UserError where a split is left without any."""
    number = {path: i for i, files in enumerate(classes.values()) for path in files}
    held = torch.tensor([path in held_out for path in used])
    if held.all() or not held.any():
        raise UserError(f"{folder} has too few {kind}s to train on and to hold some out.")
    label = torch.tensor([number[path] for path in used])
    return {"label": Label(len(classes), tuple(classes))}, label, held


def again(read: Callable[[File], Read], file: File) -> Read:
    """What ``read`` makes of a file that it has read before; UserError where it no longer can."""
    try:
        return read(file)
    except Exception as error:
        raise UserError(
            f"{file} can no longer be read ({reason(error)}): put it back as it was, and give the "
            "same command again to resume"
        ) from error


def stat(file: File) -> Any:
    """A file's size and date, as ``os.stat`` gives them; UserError where it is gone."""
    return attempt(lambda file: file.stat(), file)


def content(file: File) -> int:
    """A hash of a file's bytes, an int64."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def identity(
    folder: Path, contents: Mapping[File, int], classes: Classes, held_out: set[File]
) -> str:
    """What a folder's files are, wherever it lies: a hash of paths, contents, classes and split.

    Of the files that are used, whose ``contents`` (see `content`) are in their order.
    """
    names = {file: name for name, files in classes.items() for file in files}
    return hashed(
        [
            [file.relative_to(folder).as_posix(), value, names[file], file in held_out]
            for file, value in contents.items()
        ]
    )


def dated(folder: Path, paths: Sequence[File]) -> dict[str, Any]:
    """What tells, without reading them, whether files have changed: names, sizes and dates."""
    files = [(path.relative_to(folder), stat(path)) for path in paths]
    return {
        "folder": str(folder.resolve()),
        "files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in files],
    }


def report(folder: Path, skipped: Sequence[Sequence[Any]], total: int, kind: str) -> None:
    """Name the files that were skipped, (path within the folder, reason, broken) each.

    Raises UserError with their list when more than 1 % of all files are broken.
    """
    for path, why, _ in skipped:
        log.warning("skipped %s: %s", folder / path, why)
    if skipped:
        log.warning("skipped %d of %d %ss", len(skipped), total, kind)
    broken = [path for path, _, bad in skipped if bad]
    if len(broken) > BROKEN * total:
        raise UserError(
            f"{len(broken)} of {total} {kind}s are broken, more than {BROKEN:.0%}; "
            f"fix or remove them: {', '.join(broken)}."
        )


def _of_the_machine(error: Exception) -> bool:
    """Whether an error came of the machine's state: the OSErrors of decoders have no number."""
    if isinstance(error, OSError):
        return error.errno is not None
    full = isinstance(error, RuntimeError) and "allocate memory" in str(error)  # which is torch's
    return full or isinstance(error, MemoryError | ImportError)


def _by_subfolder(tree: Tree, folder: Path, kind: str) -> Classes:
    """Classes by subfolder; files directly in the folder are one class, named "."."""
    classes: Classes = {}
    for file, path in tree.items():
        classes.setdefault(path.parts[0] if len(path.parts) > 1 else ".", []).append(file)
    if "." in classes and len(classes) > 1:
        loose = classes["."][0].name
        raise UserError(f"{folder} has {kind}s beside class folders ({loose}); put each into one.")
    return classes


def _together(tree: Tree, folder: Path, kind: str) -> Classes:
    """All files as one class, named "."."""
    return {".": list(tree)}


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


def hold_out(files: list[File], folder: Path) -> list[File]:
    """The 5 % of a class with the lowest hashes, at least one of two or more files."""
    names = {path: os.fsencode(path.relative_to(folder).as_posix()) for path in files}
    ranked = sorted(files, key=lambda path: hashlib.sha256(names[path]).digest())
    return ranked[: max(round(HELD_OUT * len(files)), min(1, len(files) - 1))]
