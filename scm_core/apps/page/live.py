"""A student that answers at once: what it draws as files in memory, what that cost, and its race.

It knows no modality: what a sample looks and sounds like is what its decoder saves.
"""

from __future__ import annotations

import mimetypes
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scm_core.apps.writing import provenance_of
from scm_core.base.arguments import Overrides
from scm_core.base.errors import UserError
from scm_core.contract.fields import Condition, Schema, parse_condition, shown
from scm_core.data import media, provenance
from scm_core.engine import checkpoint
from scm_core.engine.checkpoint import Checkpoint
from scm_core.engine.sampling import (
    STEPS,
    SampleConfig,
    make_sampler,
    sample_all,
)
from scm_core.evaluation import evaluator
from scm_core.method.samplers import CountedModel

REFERENCE = evaluator.FULL[0]  # the teacher's sampler and steps that a student is measured by


@dataclass(frozen=True)
class File:
    """What the decoder saved of one sample, and its preview where that is no picture itself."""

    name: str
    kind: str  # a MIME type
    data: bytes
    preview: bytes | None  # PNG
    title: str  # the classes it was drawn for


@dataclass(frozen=True)
class Drawn:
    """Samples as files, and what all of them together cost.

    `lasts` is how long each of them plays, in seconds, None where nothing does.
    """

    files: list[File]
    nfe: float
    network_seconds: float
    decoding_seconds: float
    lasts: float | None

    @property
    def seconds(self) -> float:
        return self.network_seconds + self.decoding_seconds


class Live:
    """A student and the teacher beside it, if any; one request is computed at a time."""

    def __init__(self, student: Checkpoint, decoder: Overrides | None = None) -> None:
        """Warm both up, which the first draw would wait for; UserError for a teacher alone.

        Overrides of the section `decoder` replace the teacher's, as they did the student's.
        """
        if student.stage != "student":
            raise UserError(f"{student.path} holds a {student.stage}; the page wants a student")
        beside = student.path.with_name("teacher.safetensors")
        self.student, self.teacher = student, None
        self.lock = threading.Lock()
        self.first = self.draw({})
        if beside.exists():
            self.teacher = checkpoint.load(beside, student.config.modality, student.device, decoder)
            self._teacher({}, 0, steps=1)

    def draw(
        self, asked: Mapping[str, str], seed: int = 0, steps: int = STEPS, n: int = 1
    ) -> Drawn:
        """`n` of the student's samples; UserError for a condition that it does not know.

        `asked` are the condition's overrides. Classes that it leaves out go in turn, and `seed`
        says from where on.
        """
        settings = SampleConfig(steps=steps, n=n, seed=seed, batch_size=n)
        with self.lock:
            return _draw(self.student, asked, settings)

    def race(self, asked: Mapping[str, str], seed: int) -> tuple[Drawn, Drawn]:
        """One sample of the teacher by the reference sampler, and of the student in two steps.

        Both start from the same noise, for the same condition.
        """
        return self._teacher(asked, seed, REFERENCE[1]), self.draw(asked, seed)

    def _teacher(self, asked: Mapping[str, str], seed: int, steps: int) -> Drawn:
        guidance = self.student.config.student.guidance
        settings = SampleConfig(
            steps=steps, sampler=REFERENCE[0], guidance=guidance, n=1, seed=seed, batch_size=1
        )
        with self.lock:
            return _draw(self.teacher, asked, settings)


def conditions(schema: Schema, asked: Mapping[str, str], seed: int, n: int) -> Condition:
    """`n` conditions; classes that are not asked for go in turn, from the `seed`-th on."""
    turn = parse_condition(schema, dict(asked), seed + n)
    return {key: value[seed:] for key, value in turn.items()}


def _draw(model: Checkpoint, asked: Mapping[str, str], settings: SampleConfig) -> Drawn:
    condition = conditions(model.condition, asked, settings.seed, settings.n)
    sampler = make_sampler(model, settings.sampler, settings.steps, settings.guidance)
    counted = CountedModel(model.model)

    def draw(_: Any, *given: Any) -> Tensor:
        return sampler(counted, *given)

    started = time.perf_counter()
    x = sample_all(model, draw, condition, settings.n, settings.seed, settings.batch_size)
    drawn = time.perf_counter()
    decoded = model.codec.decode(x.to(model.device))
    finished = time.perf_counter()
    return Drawn(
        files=_files(model, decoded, settings, condition),
        nfe=counted.nfe(settings.n),
        network_seconds=drawn - started,
        decoding_seconds=finished - drawn,
        lasts=model.codec.seconds(decoded),
    )


def _files(
    model: Checkpoint, decoded: Any, settings: SampleConfig, condition: Condition
) -> list[File]:
    """Each sample as the decoder saves it, in a file that says how it was made."""
    facts = provenance_of(model, settings, condition)[1:]
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for i, fact in enumerate(facts):
            with provenance.stating(fact):
                stem = Path(folder) / f"{model.spec.name}-{model.stage}-{settings.seed}-{i}"
                path = model.codec.play(decoded[i], stem)
                kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
                preview = None
                if not kind.startswith(("image/", "video/")):
                    picture = model.codec.preview(decoded[i : i + 1])
                    preview = media.write_png(picture, f"{stem}-preview.png").read_bytes()
            named = shown(model.condition, condition, i).values()
            title = ", ".join(str(one) for one in named if isinstance(one, str | int))
            files.append(File(path.name, kind, path.read_bytes(), preview, title))
    return files
