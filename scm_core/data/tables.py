"""Media and captions in tables: Parquet files, and what Hugging Face's `datasets` has saved.

Rows are mapped from the disk and read in place, so that any of them can be read at any time.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scm_core.base.errors import UserError, first_line, halved
from scm_core.data.cache import CACHE
from scm_core.data.folders import ALL, Classes, hold_out
from scm_core.data.layout import part, walk
from scm_core.data.shards import Inside

NAMES = ("text", "caption", "prompt")  # what a column of captions may be called
SAVED = ("dataset_info.json", "dataset_dict.json")
NEEDS = "tables of media need the package datasets: pip install 'scm-core[datasets]'"


@dataclass(frozen=True)
class Row(Inside):
    """A medium in a table; what readers ask of a path they can ask of it.

    ``path`` is its split and number within the table's folder, ``modified`` in nanoseconds.
    """

    path: Path
    number: int
    modified: int
    table: Any = field(compare=False, repr=False)
    column: str = field(compare=False, repr=False)

    @property
    def suffix(self) -> str:
        """Its ending, of which nothing depends."""
        return ""

    def stat(self) -> SimpleNamespace:
        """Its size and its table's date, of what ``os.stat`` gives."""
        size = self.open().getbuffer().nbytes
        return SimpleNamespace(st_size=size, st_mtime_ns=self.modified)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """All of its bytes; UserError where the row holds none."""
        found = self.table[self.number][self.column]
        content = found.get("bytes") if isinstance(found, dict) else found
        if not isinstance(content, bytes):
            raise UserError(f"{self} holds no bytes: save the table with its files in it")
        return io.BytesIO(content)


def is_table(folder: Path) -> bool:
    """Whether a folder holds Parquet files, or a saved data set."""
    return (
        any((folder / name).is_file() for name in SAVED) or next(_parquet(folder), None) is not None
    )


def captioned(folder: Path, kind: str) -> tuple[Classes, set[Any], dict[Any, str]]:
    """As `data.captions.captioned`, of the first column of media and the first of captions.

    Splits are those of the table; where there is one alone, 5 % of its rows are held out.
    """
    splits = _splits(folder)
    trained = [row for row in _rows(folder, "train", *splits.get("train", (None, 0)), kind)]
    held_out = next((name for name in ("test", "val") if name in splits), None)
    held = [row for row in _rows(folder, held_out, *splits.get(held_out, (None, 0)), kind)]
    if not trained:
        raise UserError(f"{folder} has no split to train on: call one train.")
    captions = dict([*trained, *held])
    out = {row for row, _ in held} or set(hold_out([row for row, _ in trained], folder))
    return {ALL: list(captions)}, out, captions


def stripped(caption: Any, where: Any) -> str:
    """A caption in one line; UserError, which says where it stands, for one that is empty or no
    text: half of a character that two escapes write is none."""
    if caption is not None and not isinstance(caption, str):
        raise UserError(f"{where} has a caption that is no text, but a {type(caption).__name__}.")
    text = " ".join((caption or "").split())
    if halved(text):
        raise UserError(f"{where} has half of a character in its caption: {text[-40:]!r}.")
    if not text:
        raise UserError(f"{where} has an empty caption: write one, or remove what it describes.")
    return text


def _rows(
    folder: Path, split: str | None, table: Any, modified: int, kind: str
) -> Iterator[tuple[Row, str]]:
    """The rows of a split, and their captions."""
    if table is None:
        return
    media = [name for name, feature in table.features.items() if _holds_media(feature)]
    texts = [name for name in NAMES if name in table.features]
    if not media or not texts:
        raise UserError(
            f"{folder} has no column of {kind}s, or none called {' or '.join(NAMES)}: it has "
            f"{', '.join(table.features)}."
        )
    if hasattr(table.features[media[0]], "decode"):
        table = table.cast_column(media[0], type(table.features[media[0]])(decode=False))
    for i, caption in enumerate(table[texts[0]]):
        row = Row(folder / split / f"{i:08d}", i, modified, table, media[0])
        yield row, stripped(caption, row)


def _holds_media(feature: Any) -> bool:
    """Whether a column is one of pictures, sounds or videos, or of their bytes."""
    of_bytes = isinstance(feature, dict) and "bytes" in feature
    return of_bytes or hasattr(feature, "decode") or getattr(feature, "dtype", "") == "binary"


def _splits(folder: Path) -> dict[str, tuple[Any, int]]:
    """The table of each split, `train`, `val` and `test`, and when it was last changed."""
    try:
        import datasets
    except ImportError:
        raise UserError(NEEDS) from None
    datasets.disable_progress_bars()
    try:
        if any((folder / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(folder))
            tables = found if isinstance(found, dict) else {"train": found}
            files = {name: [str(folder / SAVED[0])] for name in tables}
            files |= {n: [one["filename"] for one in t.cache_files] for n, t in tables.items()}
        else:
            files = {}
            for path in sorted(_parquet(folder)):
                name = part(path.stem.split("-")[0]) or part(path.parent.name) or "train"
                files.setdefault(name, []).append(str(path))
            cache = str(CACHE / "tables")
            tables = datasets.load_dataset("parquet", data_files=files, cache_dir=cache)
    except Exception as error:  # datasets and pyarrow raise all kinds
        raise UserError(f"{folder} cannot be read as a table: {first_line(error)}") from error
    dates = {name: max(Path(one).stat().st_mtime_ns for one in files[name]) for name in tables}
    return {part(name) or name: (table, dates[name]) for name, table in tables.items()}


def _parquet(folder: Path) -> Iterator[Path]:
    return (path for path in walk(folder) if path.suffix == ".parquet" and path.stem != "metadata")
