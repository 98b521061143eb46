"""Captions of the media files in a folder: a text file beside each, or a table of them.

Whether these files lie in the folder or in its shards makes no difference.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from scm_core.base.errors import UserError, reason
from scm_core.data import tables
from scm_core.data.folders import Classes, classified, listed
from scm_core.data.shards import File
from scm_core.data.tables import NAMES, is_table, stripped

TABLES = ("metadata.jsonl", "metadata.csv")  # of Hugging Face's `imagefolder`
OTHERS = {"readme", "license", "licence", "notice", "changelog", "classes", "labels"}  # texts alone

Captions = dict[File, str]


def captioned(folder: Path, suffixes: set[str], kind: str) -> tuple[Classes, set[File], Captions]:
    """A folder's media files as one class, which of them are held out, and the caption of each.

    A caption is the text file of the same name beside its medium, or a line of `metadata.jsonl` or
    `metadata.csv`, with `file_name` relative to that table and `text`; where there is a table,
    text files are none. Splits are as in `folders.classified`, other subfolders mean nothing.
    Tables that hold the media themselves are read by `data.tables`.

    UserError for a caption without its medium, media without captions, an empty caption, and a
    file of captions that cannot be read.
    """
    if folder.is_dir() and is_table(folder):
        return tables.captioned(folder, kind)
    classes, held = classified(folder, suffixes, kind, by_subfolder=False)
    media, others = listed(folder, suffixes)
    by_path = {path: file for file, path in media.items()}
    lists = [file for file in others if file.name in TABLES]
    found = _of_tables(lists, others, by_path, kind)
    found = found if lists else _of_texts(others, by_path, kind)
    files = [file for all_of in classes.values() for file in all_of]
    if not found:
        raise UserError(
            f"{folder} has no captions: put a .txt of the same name beside each {kind}, or name "
            f"each in a {TABLES[0]} by its file_name and text."
        )
    if missing := [file for file in files if file not in found]:
        raise UserError(
            f"{len(missing)} of {len(files)} {kind}s have no caption, the first is {missing[0]}."
        )
    return classes, held, {file: found[file] for file in files}


def _of_texts(others: Mapping[File, Path], media: Mapping[PurePath, File], kind: str) -> Captions:
    """By the text files beside media; several media of one name share theirs."""
    by_stem: dict[PurePath, list[File]] = {}
    for path, file in media.items():
        by_stem.setdefault(path.with_suffix(""), []).append(file)
    found: Captions = {}
    orphans = []
    for file, path in others.items():
        if path.suffix.lower() != ".txt" or path.stem.lower() in OTHERS:
            continue
        if path.with_suffix("") not in by_stem:
            orphans.append(file)
            continue
        caption = stripped(_text(file), file)
        found.update(dict.fromkeys(by_stem[path.with_suffix("")], caption))
    if orphans:
        raise UserError(
            f"{orphans[0]} is the caption of no {kind}: none of the same name lies beside it."
        )
    return found


def _of_tables(
    lists: list[File], others: Mapping[File, Path], media: Mapping[PurePath, File], kind: str
) -> Captions:
    """By tables, each of the media in its own folder."""
    found: Captions = {}
    for table in lists:
        for where, row in _rows(table):
            name = row.get("file_name")
            column = next((key for key in NAMES if key in row), None)
            if not isinstance(name, str) or column is None:
                raise UserError(f"{where} has no file_name and {' or '.join(NAMES)}.")
            path = others[table].parent / name
            if path not in media:
                raise UserError(f"{where} is the caption of {name}, but there is no such {kind}.")
            caption = stripped(row[column], where)
            if found.setdefault(media[path], caption) != caption:
                raise UserError(f"{where} is another caption of {name}: give each {kind} one.")
    return found


def _rows(table: File) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, and where each stands."""
    text = _text(table)
    if table.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                yield f"{table}, line {reader.line_num},", row
        except csv.Error as error:  # of a quotation mark that nothing closes, for one
            raise UserError(f"{table}, line {reader.line_num}, cannot be read: {error}.") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{table}, line {number},"
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{where} is not a JSON object.")
            yield where, row


def _text(file: File) -> str:
    """What a text file says; UserError where it is no UTF-8."""
    try:
        with file.open("rb") as opened:
            return opened.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else reason(error)
        raise UserError(f"the captions of {file} cannot be read: {why}.") from error
