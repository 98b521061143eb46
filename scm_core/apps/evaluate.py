"""From the command's arguments to the figures of a student and its teacher."""

from __future__ import annotations

import datetime
import importlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

import scm_core
from scm_core.apps.opening import of_model, open_checkpoint
from scm_core.base import console
from scm_core.base.arguments import nearest, parse, place, section
from scm_core.base.device import resolve_precision
from scm_core.base.errors import UserError
from scm_core.base.files import write_text
from scm_core.contract.spec import Features, ModalitySpec, Scorer
from scm_core.data.latents import fingerprint
from scm_core.engine import checkpoint, config, foreign
from scm_core.engine.checkpoint import Checkpoint
from scm_core.engine.compilation import compiled
from scm_core.evaluation import evaluator, plots, report
from scm_core.evaluation.evaluator import Bench, Plan, Row
from scm_core.evaluation.measuring import Partial, measure, probe
from scm_core.evaluation.ratios import judged, ratios


@dataclass
class EvaluateConfig:
    """What to evaluate, how thoroughly, and where to write it."""

    checkpoint: str | None = place()
    modality: str | None = None
    teacher: str | None = place()
    preset: str | None = None
    n: int | None = None
    batch_size: int = 128
    seed: int = 0
    features: Any = None  # a text or several
    compile: bool = False
    out: str | None = place()


def main(arguments: list[str]) -> None:
    """Measure every row that is not yet measured; write, plot and print the table."""
    with console.together() as first:
        evaluate(arguments, first)


def evaluate(arguments: list[str], first: bool) -> None:
    """The command, in one of the processes that share the drawing; only the `first` writes."""
    overrides = parse(arguments)
    decoder = of_model(overrides)
    of_data = section(overrides, "data") | section(overrides, "limits")
    settings = config.merge(OmegaConf.structured(EvaluateConfig), ("command line", overrides))
    preset = _preset(settings)
    student, teacher = _models(settings, decoder)
    for model in (student, teacher) if settings.compile else ():
        compiled(model.backbone)
    plan = evaluator.PLANS[preset]
    out = Path(settings.out) if settings.out else student.path.parent
    foreign.refuse(student.path, student.places, of_data)
    full_config = config.merge(student.config, ("command line", of_data))
    data = student.spec.data(full_config)
    data.setup()
    if tuple(data.shape) != student.data_shape:
        raise UserError(f"the data are {tuple(data.shape)}, the student draws {student.data_shape}")
    scorer = student.spec.scorer(full_config, data)
    bench = Bench(
        features=_features(settings.features, student.spec, full_config, scorer),
        scorer=scorer,
        n=settings.n or student.spec.evaluation_samples.get(preset, plan.n),
        seed=settings.seed,
        batch_size=settings.batch_size,
        device=student.device,
    )
    about = _about(student, teacher, full_config, bench, plan)
    about |= {"compiled": settings.compile, "identity": data.identity}
    measured = measure(bench, plan, student, teacher, data, Partial(out, about, first))
    picture = out / "nearest.png" if first else None
    probed = probe(bench, measured, student, teacher, data, picture)
    if not first:
        return
    extractors = [features.name for features in bench.features]
    rows = measured.rows
    found = ratios(rows, extractors, list(measured.test.scores))
    targets = judged(found, student.spec.targets)
    figures = {**about, "date": _date(), "rows": rows, "ratios": found, "targets": targets}
    write_text(out / "metrics.json", json.dumps({**figures, **probed}, indent=2) + "\n")
    points = report.points(rows, f"fd_{extractors[0]}")
    pictures = [
        plots.quality_time_plot(points, out / "quality_time.png"),
        plots.trajectory_plot(probed["trajectories"], out / "trajectories.png"),
        picture,
    ]
    (out / Partial.NAME).unlink(missing_ok=True)
    report.show(rows, found, targets, probed)
    console.console.print(", ".join(map(str, (out / "metrics.json", *pictures))))


def _preset(settings: DictConfig) -> str:
    """The name of the plan, once all that can be wrong about the sizes is checked."""
    preset = settings.preset or config.default_preset()
    if preset not in evaluator.PLANS:
        raise UserError(f"no preset {preset}; {nearest(preset, list(evaluator.PLANS))}")
    least = evaluator.NEIGHBOURS + 1
    if settings.n is not None and settings.n < least:
        raise UserError(f"n={settings.n} must be at least {least}")
    if settings.batch_size < 1:
        raise UserError(f"batch_size={settings.batch_size} must be at least 1")
    return preset


def _features(
    names: Any, spec: ModalitySpec, full_config: DictConfig, scorer: Scorer
) -> tuple[Features, ...]:
    """The plugin's extractors and its scorer's, or objects of the classes that are named."""
    if names:
        names = [names] if isinstance(names, str) else names
        found = tuple(_imported(str(name)) for name in names)
    else:
        found = spec.features(full_config) + tuple(getattr(scorer, "features", ()))
    called = [features.name for features in found]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise UserError(f"two extractors are called {twice}: each needs a name of its own")
    return found


def _imported(name: str) -> Features:
    """An object of the class at `package.module:CLASS`."""
    module, _, kind = name.partition(":")
    try:
        return getattr(importlib.import_module(module), kind)()
    except UserError:
        raise
    except Exception as error:  # somebody's module may fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"features={name} cannot be used: {reason}") from error


def _models(settings: DictConfig, decoder: Any) -> tuple[Checkpoint, Checkpoint]:
    """The student and its teacher; UserError when they are not a pair."""
    student = open_checkpoint(settings.checkpoint, settings.modality, decoder)
    if student.stage != "student":
        raise UserError(f"{student.path} holds a {student.stage}; checkpoint= wants a student")
    path = settings.teacher or student.path.with_name("teacher.safetensors")
    teacher = checkpoint.load(path, student.config.modality, student.device, decoder)
    if teacher.stage != "teacher" or teacher.shape != student.shape:
        raise UserError(f"{path} holds no teacher of samples {student.shape}; name it by teacher=")
    return student, teacher


def _about(
    student: Checkpoint, teacher: Checkpoint, full_config: DictConfig, bench: Bench, plan: Plan
) -> Row:
    """All that the figures depend on; rows of another description are not taken up again."""
    plain = config.plain(full_config)
    data = {
        key: value for key, value in plain["data"].items() if key not in ("root", "text_encoder")
    }
    decoder = {"decoder": plain["decoder"]} if "decoder" in plain else {}
    cuda = bench.device.type == "cuda"
    processor = f"CPU ({torch.backends.cpu.get_cpu_capability()}), {platform.machine()}"
    return {
        "modality": student.config.modality,
        "student": {"step": student.step, "sha256": student.sha256},
        "teacher": {"step": teacher.step, "sha256": teacher.sha256},
        "guidance": student.config.student.guidance,
        "last_time": student.ends[1],
        "data": data,
        **decoder,
        "n": bench.n,
        "reference_samples": plan.reference,
        "seed": bench.seed,
        "batch_size": bench.batch_size,
        "precision": resolve_precision("auto", bench.device.type),
        "features": bench.features[0].name,
        "extractors": {features.name: _extractor(features) for features in bench.features},
        "device": torch.cuda.get_device_name(bench.device) if cuda else processor,
        "threads": torch.get_num_threads(),
        "versions": {"scm_core": scm_core.__version__, "torch": torch.__version__},
    }


def _extractor(features: Features) -> list[str]:
    """Which features these are, whatever they are called: their class, and hashes of weights."""
    parts = (features, *vars(features).values())
    weights = [fingerprint(part) for part in parts if isinstance(part, nn.Module)]
    return [f"{type(features).__module__}:{type(features).__qualname__}", *weights]


def _date() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
