"""What is made once of every file of a folder: kept on disk group by group, and read from there."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from scm_core.base.errors import UserError
from scm_core.data.cache import Table, keep, kept, place
from scm_core.data.folders import Skipped, attempt, content, dated, in_threads, report, stat, usable
from scm_core.data.shards import File

VERSION = 1  # of what is kept of any file: another one is made anew
FILES = 64  # in a group, on average
BYTES = 1 << 26  # of a group's files: with so many it ends in any case

Rows = dict[str, Tensor]


class Joined:
    """Tensors (n, ...) one after the other, indexed as if they were one (N, ...)."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """Of at least one part; those mapped from disk stay there."""
        self.parts = parts
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self.shape = torch.Size([int(self.ends[-1]), *parts[0].shape[1:]])

    def __len__(self) -> int:
        """N."""
        return self.shape[0]

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """Those at these places, int64 (B,), in memory."""
        found = self.parts[0].new_empty(len(chosen), *self.shape[1:])
        part = torch.bucketize(chosen, self.ends, right=True)
        for i in part.unique().tolist():
            here = part == i
            found[here] = self.parts[i][chosen[here] - self.ends[i] + len(self.parts[i])]
        return found


def prepare(
    folder: Path,
    paths: Sequence[File],
    read: Callable[[File], Rows | Skipped],
    settings: dict[str, Any],
    cache: Path,
    kind: str,
) -> list[Rows]:
    """The rows that ``read`` makes of the files, tensors (n, ...) by name, in order, by groups.

    ``file`` among them is the place of a row's file in ``paths``, ``content`` a hash of its bytes
    (see `folders.content`), int64 (n,). Each group of files is kept in ``cache`` under
    ``settings`` and their names, sizes and dates, and mapped from there: an interrupted preparation
    goes on, a file that is added or fixed costs those near it alone, and rows need not fit into
    memory. ``kind`` is what people call a file.

    What ``read`` raises of a file's bytes makes it a broken one. Files that are broken or skipped
    are named in a warning; UserError when more than 1 % are broken, one cannot be read now, which
    is not remembered, or no row is left.
    """
    groups = list(_groups(folder, paths))
    settings = {"prepared": VERSION, **settings}
    places = [place(cache, {**settings, **dated(folder, group)}) for group in groups]
    tables = [kept(path) for path in places]
    missing = [i for i, table in enumerate(tables) if table is None]
    files = [file for i in missing for file in groups[i]]
    attempts = in_threads(partial(attempt, partial(_rows, read)), files)
    # Both are closed here: left to the garbage collector, rich's may wait for itself for ever.
    with (
        closing(attempts),
        closing(track(attempts, f"decoding {kind}s", len(files), transient=True)) as results,
    ):
        for i in missing:
            made = _table(folder, groups[i], islice(results, len(groups[i])))
            keep(places[i], made)
            tables[i] = kept(places[i]) or made  # mapped now, and out of memory
    report(folder, [one for _, facts in tables for one in facts["skipped"]], len(paths), kind)
    used, before = [], 0
    for group, (rows, _) in zip(groups, tables, strict=True):
        if rows:
            used.append({**rows, "file": rows["file"].long() + before})
        before += len(group)
    if not used:
        raise UserError(f"{folder} has no {kind} that can be used.")
    return used


def contents(paths: Sequence[File], tables: Sequence[Rows]) -> dict[File, int]:
    """The files that the rows of `prepare` are of, in order, and a hash of each one's bytes."""
    found = {}
    for rows in tables:
        found.update(zip(rows["file"].tolist(), rows["content"].tolist(), strict=True))
    return {paths[i]: value for i, value in found.items()}


def _groups(folder: Path, paths: Sequence[File]) -> Iterator[list[File]]:
    """Consecutive files; as a rule their names say where a group ends, whatever lies before it."""
    group, size = [], 0
    for path in paths:
        group.append(path)
        size += stat(path).st_size
        name = os.fsencode(path.relative_to(folder).as_posix())
        if size >= BYTES or zlib.crc32(name) % FILES == 0:
            yield group
            group, size = [], 0
    if group:
        yield group


def _rows(read: Callable[[File], Rows | Skipped], file: File) -> Rows | Skipped:
    rows = read(file)
    if isinstance(rows, Skipped):
        return rows
    (count,) = {len(values) for values in rows.values()}
    return {**rows, "content": torch.full((count,), content(file), dtype=torch.int64)}


def _table(folder: Path, group: list[File], results: Iterator[Rows | Skipped]) -> Table:
    rows, skipped = [], []
    for i, result in usable(folder, group, results, skipped):
        file = torch.full((len(result["content"]),), i, dtype=torch.int32)
        rows.append({**result, "file": file})
    names = rows[0] if rows else ()
    return {name: torch.cat([row[name] for row in rows]) for name in names}, {"skipped": skipped}
