"""The check of what is made of media: features and scores for an evaluation, and files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from scm_core.base.errors import UserError, first_line
from scm_core.contract.fields import Condition
from scm_core.contract.spec import Codec, Features, Scorer
from scm_core.evaluation.evaluator import fit
from scm_core.testing.subject import SAMPLES, Fault, Subject, equal, first


@torch.no_grad()
def evaluation(subject: Subject) -> str:
    """What is done with decoded media: every extractor, the scorer, and a file of one."""
    spec, config = subject.spec, subject.config
    media = subject.codec.decode(subject.held_out.x[:SAMPLES])
    given = {key: value[:SAMPLES] for key, value in subject.held_out.condition.items()}
    extractors: list[Features] = []
    said: list[str] = []
    with _named(said):
        extractors += spec.features(config)
    with _named(said):
        scorer = spec.scorer(config, subject.data)
        extractors += getattr(scorer, "features", ())
        said += _scores(scorer, media, given)
    for extractor in extractors:
        with _named(said):
            said.append(_features(extractor, media))
    called = [extractor.name for extractor in extractors]
    if len({*called}) < len(called):
        raise Fault(f"extractors are called {', '.join(called)}", "each needs a name of its own")
    with _named(said):
        said.append(_file(subject.codec, media))
    return ", ".join(said)


@contextmanager
def _named(said: list[str]) -> Iterator[None]:
    """Packages and weights that are absent are named: they are no fault of the plugin's."""
    try:
        yield
    except (UserError, ModuleNotFoundError) as error:
        said.append(f"not tried ({first_line(error)})")


def _scores(scorer: Scorer, media: Any, condition: Condition) -> list[str]:
    """The names of the scores."""
    count, scores = sum(1 for _ in media), scorer(media, condition)
    for name, value in scores.items():
        if value.shape != (count,) or not value.isfinite().all():
            finite = "" if value.isfinite().all() else ", not all finite"
            raise Fault(
                f"the score {name} is {tuple(value.shape)} of {count} media{finite}",
                "a scorer gives finite scores (N,) by name, one for each of N media",
            )
    return list(scores)


def _features(extractor: Features, media: Any) -> str:
    """The extractor's name, and the shape of what it gives."""
    found, again = extractor(media), extractor(media)
    figure = f"{extractor.name} {tuple(found.shape)}"
    if not fit(found, media) or not found.isfinite().all():
        finite = "" if found.isfinite().all() else ", not all finite"
        raise Fault(
            f"{figure} of {sum(1 for _ in media)} media{finite}",
            "an extractor gives finite features (N, D), one row for each of N media: "
            "media.float().flatten(1) are the simplest",
        )
    if not equal([found], [again]):
        raise Fault(
            f"{extractor.name} gives others the second time",
            "put its network into eval mode, and draw from a generator with a fixed seed",
        )
    return figure


def _file(codec: Codec, media: Any) -> str:
    """The name of what one sample is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "00000"
        path = codec.save(first(media), asked)
        if not isinstance(path, Path) or path.stem != asked.name or not path.is_file():
            raise Fault(
                f"save({asked.name}) returns {path}",
                "write one sample as path with a suffix, and return that path",
            )
        return path.name
