"""The objectives that a configuration names: which, with what options, in what phases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from scm_core.base.arguments import nearest
from scm_core.base.errors import UserError, first_line
from scm_core.contract import plugins
from scm_core.method.objectives import Objective

OF_A_PHASE = ("steps", "lr", "lr_warmup")  # its keys beside the weights of its objectives


@dataclass(frozen=True)
class Phase:
    """A part of a training: a weighted sum of objectives by name, its length in steps (the last one
    ends where the training does), its highest learning rate and the steps of its linear warm-up."""

    weights: Mapping[str, float]
    steps: int
    lr: float
    lr_warmup: int = 0


def get(name: str) -> type[Objective]:
    """The objective of that name, or at `package.module:CLASS`; imports that one alone.

    UserError as of `scm_core.contract.spec.get`.
    """
    entry = plugins.find("objective", name, OF_A_PHASE)
    found = plugins.load("objective", entry)
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise UserError(f"objective {name}: {entry.value} is no subclass of Objective")
    return found


def options(name: str, given: Mapping[str, Any]) -> Any:
    """The `Options` of an objective; UserError for what they do not take."""
    section = f"student.options.{name}"
    known = OmegaConf.structured(get(name).Options)
    try:
        return OmegaConf.to_object(OmegaConf.merge(known, given))
    except ConfigKeyError as error:
        key = str(error.full_key or error.key)
        raise UserError(f"no key {section}.{key}; {nearest(key, list(known))}") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{section}.{error.full_key}: {first_line(error)}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{section}.{first_line(error)}") from error


def phases(student: Any) -> list[Phase]:
    """The phases of `student`, a section of a configuration; UserError for one that cannot be."""
    found = [
        _phase(f"student.phases[{i}]", dict(plain), student)
        for i, plain in enumerate(OmegaConf.to_container(student.phases, resolve=True))
    ]
    if not found:
        raise UserError("student.phases=[] leaves nothing to train")
    return found


def _phase(where: str, plain: dict[str, Any], student: Any) -> Phase:
    try:
        steps = int(plain.pop("steps"))
        lr = float(plain.pop("lr", student.lr))
        lr_warmup = int(plain.pop("lr_warmup", student.lr_warmup))
        weights = {str(name): float(weight) for name, weight in plain.items()}
    except KeyError as error:
        raise UserError(f"{where} has no steps: give it steps=, its length") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: {first_line(error)}") from error
    for name in weights:
        get(name)
    if not weights:
        names = ", ".join(sorted({entry.name for entry in plugins.installed("objective")}))
        raise UserError(f"{where} has no objective with its weight: known are {names}")
    for key, value, fits, what in (
        ("steps", steps, steps >= 1, "at least 1"),
        ("lr", lr, 0 < lr < math.inf, "a number above 0"),
        ("lr_warmup", lr_warmup, lr_warmup >= 0, "at least 0"),
        *((name, w, 0 < w < math.inf, "a number above 0") for name, w in weights.items()),
    ):
        if not fits:
            raise UserError(f"{where}.{key}={value} must be {what}")
    return Phase(weights, steps, lr, lr_warmup)


def state(student: Any) -> None:
    """Write all options of the objectives in its phases into `student`, their defaults too."""
    for name in {name: None for phase in phases(student) for name in phase.weights}:
        student.options[name] = OmegaConf.structured(options(name, student.options.get(name, {})))
