"""The keys of a student before it had phases: what they are now.

Configurations in files are translated; on a command line a key that has one new name is too.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from scm_core.base.arguments import Overrides
from scm_core.base.errors import UserError, first_line

RENAMED = {key: f"consistency.{key}" for key in ("tangent_warmup", "norm", "c", "P_mean", "P_std")}
RENAMED |= {f"midtraining.{key}": f"endpoint.{key}" for key in ("solver", "solver_steps", "points")}
RENAMED |= {
    f"score.{key}": f"distribution_matching.{key}"
    for key in ("lr", "draws", "rollouts", "P_mean", "P_std")
}
OF_PHASES = ("consistency", "score.weight", "midtraining.steps", "midtraining.lr")


def renamed(overrides: Overrides) -> Overrides:
    """A command line in today's keys; UserError for one that phases replace."""
    found = {}
    for key, text in overrides.items():
        name = key.removeprefix("student.")
        if key.startswith("student.") and name in OF_PHASES:
            raise UserError(
                f"{key} is gone: give student.phases=, such as [{{endpoint: 1, steps: 1000, "
                "lr: 1e-3}, {consistency: 1, distribution_matching: 0.1, steps: 4000}]"
            )
        moved = key.startswith("student.") and name in RENAMED
        found[f"student.options.{RENAMED[name]}" if moved else key] = text
    return found


def translated(layer: DictConfig) -> DictConfig:
    """A file's configuration in today's keys."""
    student = layer.get("student")
    if not isinstance(student, DictConfig) or not (old := _old(student)):
        return layer
    now: dict[str, Any] = OmegaConf.to_container(student)
    for key in old:
        section, _, name = key.rpartition(".")
        del (now[section] if section else now)[name]
    now = {key: value for key, value in now.items() if value or key not in ("midtraining", "score")}
    for key in (key for key in RENAMED if key in old):
        objective, option = RENAMED[key].split(".")
        now.setdefault("options", {}).setdefault(objective, {})[option] = old[key]
    try:
        if old.keys() & {*OF_PHASES}:
            now["phases"] = _phases(int(now.pop("max_steps", 100_000)), old)
    except (TypeError, ValueError) as error:
        raise UserError(f"student: {first_line(error)}") from error
    layer = layer.copy()
    layer.student = now
    return layer


def _old(student: DictConfig) -> dict[str, Any]:
    """The values of yesterday's keys in the section `student`."""
    found = {key: OmegaConf.select(student, key) for key in (*RENAMED, *OF_PHASES)}
    return {key: value for key, value in found.items() if value is not None}


def _phases(total: int, old: dict[str, Any]) -> list[dict[str, Any]]:
    """Mid-training and what came after it."""
    first = min(total, int(old.get("midtraining.steps", 0)))
    weights = {
        "consistency": old.get("consistency", 1.0),
        "distribution_matching": old.get("score.weight", 0.0),
    }
    rest = {name: weight for name, weight in weights.items() if weight}
    endpoint = {"endpoint": 1.0, "steps": first, "lr": old.get("midtraining.lr", 1e-3)}
    return [endpoint] * bool(first) + [{**rest, "steps": total - first}] * (total > first)
