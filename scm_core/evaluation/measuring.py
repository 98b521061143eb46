"""Measuring row by row, each kept as soon as it is finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor

from scm_core.base import console, distributed
from scm_core.base.errors import UserError
from scm_core.base.files import write_text
from scm_core.contract.fields import Condition
from scm_core.contract.spec import DataModule
from scm_core.engine.checkpoint import Checkpoint
from scm_core.evaluation import neighbours, trajectories
from scm_core.evaluation.evaluator import Advance, Bench, Row, Samples, Setting

REAL, DECODED = "real test set", "real test set, decoded"
PROBED = 500  # samples that are followed one by one
Drawn = tuple[Setting, Checkpoint]  # a row: how samples are drawn, and by which model


def measure(
    bench: Bench, reference_samples: int, drawn: list[Drawn], data: Any, partial: Partial
) -> Measured:
    """All rows, each kept in ``partial`` as soon as it is finished, and what they compare with.

    The first row is the real test set, the second the same through a decoder that is not exact,
    then those that are ``drawn``.
    """
    seen = Seen(data)
    with _progress() as bar:
        with bar("real training samples", reference_samples) as advance:
            reference = bench.reference(seen, reference_samples, advance)
        with bar("real test samples", None) as advance:
            test = bench.test(seen, advance)
        partial.compared_with(seen.digest.hexdigest())
        n = len(next(iter(test.features.values())))
        row = {"model": "real", "n": n}
        if REAL not in partial.rows:
            partial.add({"name": REAL, **row, **bench.quality(reference, test)})
        codec = drawn[0][1].codec
        if DECODED not in partial.rows and not codec.exact:
            with bar(DECODED, n) as advance:
                floor = bench.test(data, advance, through=codec)
                partial.add({"name": DECODED, **row, **bench.quality(reference, floor)})
        for setting, model in drawn:
            if setting.name in partial.rows:
                continue
            with bar(setting.name, bench.n) as advance:
                samples, cost = bench.draw(model, setting, test.condition, advance)
                row = {"name": setting.name, **vars(setting), "n": bench.n, **cost}
                partial.add({**row, **bench.quality(reference, samples)})
    kept = {REAL, DECODED, *(setting.name for setting, _ in drawn)}
    rows = [row for name, row in partial.rows.items() if name in kept]
    return Measured(rows, reference, test)


def probe(
    bench: Bench,
    measured: Measured,
    student: Checkpoint,
    teacher: Checkpoint,
    data: DataModule,
    picture: Path | None,
) -> Row:
    """What a few samples say of the student beside its quality: ``trajectories``, ``memorisation``.

    See `trajectories.followed` and `neighbours.memorised`; ``picture`` is the file that the latter
    writes, if any.
    """
    few = replace(bench, n=min(bench.n, PROBED))
    condition, chooser = measured.test.condition, bench.features[0].name
    with _progress() as bar:
        with bar("the teacher's trajectories", few.n) as advance:
            options = (few.n, few.seed, few.batch_size, advance)
            followed = trajectories.followed(student, teacher, condition, *options)
        with bar("nearest training media", None) as advance:
            near = neighbours.memorised(
                few, student, data, measured.reference[chooser], condition, picture, advance
            )
    return {"trajectories": followed, "memorisation": near}


@dataclass(frozen=True)
class Measured:
    """Finished rows, the features of training media, and the real test media."""

    rows: list[Row]
    reference: dict[str, Tensor]
    test: Samples


class Seen:
    """A data module, and a hash of all real media and conditions that it has given so far."""

    def __init__(self, data: DataModule) -> None:
        self.data, self.digest = data, hashlib.sha256()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def real(self, split: str) -> Iterator[tuple[Tensor, Condition]]:
        """As the data module's own."""
        for shown, condition in self.data.real(split):
            for values in (shown, *condition.values()):
                content = values.cpu().contiguous().view(torch.uint8)
                self.digest.update(content.numpy().tobytes())
            yield shown, condition


class Partial:
    """The rows finished so far, in a file that a repeated command resumes from."""

    def __init__(self, path: Path, about: Row, writes: bool = True) -> None:
        """Take the rows that lie there, unless they are about something else.

        Of several processes only one writes, whose rows they all take.
        """
        self.path, self.about, self.writes = path, about, writes
        self.rows: dict[str, Row] = {}
        self.media = ""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(self.path.read_text())
            if found["about"] == json.loads(json.dumps(about)):
                self.rows, self.media = dict(found["rows"]), found["media"]
        self.rows, self.media = distributed.all_gather((self.rows, self.media))[0]
        self._write()  # so that a folder that cannot be written to is found before hours of work

    def compared_with(self, media: str) -> None:
        """Forget rows that were compared with other real media than those of this hash."""
        if media != self.media:
            self.rows, self.media = {}, media

    def add(self, row: Row) -> None:
        """Keep a finished row."""
        self.rows[row["name"]] = row
        self._write()

    def _write(self) -> None:
        if not self.writes:
            return
        kept = {"about": self.about, "media": self.media, "rows": self.rows}
        write_text(self.path, json.dumps(kept, indent=2) + "\n")


def check_replaced(path: Path, about: Row) -> None:
    """UserError where a file has figures of the same models by more samples than are asked for."""
    try:
        found = json.loads(path.read_text())
        same = all(found.get(stage) == about.get(stage) for stage in ("student", "teacher"))
        more = same and found["n"] > about["n"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # it is none of ours
    if more:
        raise UserError(
            f"{path} holds figures of {found['n']} samples, which those of {about['n']} would "
            "replace: give out=FOLDER"
        )


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A function that opens one bar after another: `with bar(name, total) as advance`."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console.console, transient=True) as progress:

        @contextlib.contextmanager
        def bar(name: str, total: int | None) -> Iterator[Advance]:
            task = progress.add_task(name, total=total)
            yield lambda n: progress.advance(task, n)
            progress.remove_task(task)
            progress.console.print(f"{name}: done")

        yield bar
