"""The conformance suite of plugins: `check_modality(SPEC)` says what is wrong and what to change,
`check_objective(CLASS)` that of an objective.

Every check is a function of a `Subject` that returns its measured figure, or raises `Fault` with
that figure and a line of advice. All run on the CPU, on the configuration that training would
take.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from scm_core.base.arguments import parse
from scm_core.contract.spec import ModalitySpec
from scm_core.dual import DualError
from scm_core.engine import config as configuration
from scm_core.engine import refusals
from scm_core.method.objectives import Objective
from scm_core.testing import objective as of_objective
from scm_core.testing.data import (
    condition,
    global_generator,
    pickling,
    round_trip,
    seed,
    shapes,
    statistics,
)
from scm_core.testing.files import config_round_trip, reload
from scm_core.testing.media import evaluation
from scm_core.testing.network import bf16, overfitting, rules, tangent, time_embedding
from scm_core.testing.subject import REFUSED, Fault, Result, Subject, prepare, seeded

CHECKS: tuple[Callable[[Subject], str], ...] = (
    condition,  # before the network is called with it
    shapes,
    statistics,
    round_trip,
    tangent,
    rules,
    bf16,
    time_embedding,
    seed,
    global_generator,
    pickling,
    config_round_trip,
    reload,
    overfitting,
    evaluation,
)


@dataclass(frozen=True)
class Conformance:
    """The results of all checks; as a string, one line for each."""

    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        return all(result.ok for result in self.results)

    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [result.name for result in self.results if not result.ok]

    def __str__(self) -> str:
        return "\n".join(map(str, self.results))


def check_modality(spec: ModalitySpec, *overrides: str) -> Conformance:
    """All checks of a plugin, under `key=value` overrides as for training.

    Raises UserError for overrides that do not fit and for data that cannot be had, and whatever the
    plugin raises while its parts are built. The global random state is what it was before.
    """
    return Conformance(tuple(results(spec, *overrides)))


def check_objective(objective: type[Objective], backbone: nn.Module | None = None) -> Conformance:
    """All checks of an objective, with a small transformer for samples (1, 16) or a `backbone`.

    Whatever it raises is in the report. The global random state is what it was before.
    """
    return Conformance(tuple(of_objective.results(objective, backbone)))


def results(spec: ModalitySpec, *overrides: str) -> Iterator[Result]:
    """The checks of `check_modality` one by one, as they are done."""
    config = configuration.finish(spec, parse([f"modality={spec.name}", *overrides]))
    refusals.check(config)
    with seeded(0):
        subject = prepare(spec, config)
    failed = False
    for check in CHECKS:
        with seeded(0):
            result = _run(check, subject, failed)
        failed |= not result.ok
        yield result


def _run(check: Callable[[Subject], str], subject: Subject, failed: bool) -> Result:
    """One check, after others of which some `failed`, or none."""
    name = check.__name__.replace("_", " ")
    try:
        return Result(name, True, check(subject))
    except Fault as fault:
        return Result(name, False, fault.figure, fault.advice)
    except DualError:
        return Result(name, False, REFUSED, "see tangent")
    except Exception as error:  # whatever it is, it belongs in the report
        figure = f"{type(error).__name__}: {error}".splitlines()[0]
        advice = "fix what is named above first, then this" if failed else "fix it there"
        return Result(name, False, figure, f"raised in {_place(error, subject.spec)}: {advice}")


def _place(error: Exception, spec: ModalitySpec) -> str:
    """The last line of the plugin's own that an exception came through."""
    package, place = spec.config.__module__.partition(".")[0], "what the plugin built"
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__", "").partition(".")[0] == package:
            place = f"{Path(frame.f_code.co_filename).name}, line {line}"
    return place
