"""From the command's arguments to the figures of a student and its teacher."""

from __future__ import annotations

import datetime
import importlib
import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

import scm_core
from scm_core.apps.opening import PREFIX, of_model, open_checkpoint
from scm_core.base import console
from scm_core.base.arguments import Overrides, nearest, parse, place, section, several
from scm_core.base.device import resolve_precision
from scm_core.base.errors import UserError
from scm_core.base.files import write_text
from scm_core.contract.fields import Schema, schema_from_dict, schema_to_dict
from scm_core.contract.spec import DataModule, Features
from scm_core.data.latents import fingerprint
from scm_core.engine import checkpoint, config, foreign
from scm_core.engine.checkpoint import Checkpoint
from scm_core.engine.compilation import compiled
from scm_core.evaluation import evaluator, plots, report
from scm_core.evaluation.evaluator import Bench, Plan, Row, Setting
from scm_core.evaluation.measuring import Drawn, Measured, Partial, check_replaced, measure, probe
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
    guidance: Any = None  # a number or several, of a teacher
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
    if not settings.out and str(settings.checkpoint).startswith(PREFIX):
        raise UserError("where shall the figures of a downloaded student go? give out=FOLDER")
    preset, guidances = _preset(settings), _guidances(settings.guidance)
    named = _distinct(tuple(map(_imported, several(settings.features))))
    models = _models(settings, decoder, alone=bool(guidances))
    for model in models if settings.compile else ():
        compiled(model.backbone)
    out = Path(settings.out) if settings.out else models[0].path.parent
    data, full_config = _data(models[0], of_data)
    bench = _bench(settings, models[0], data, full_config, preset, named)
    about = _about(models, full_config, bench, evaluator.PLANS[preset])
    about |= {"compiled": settings.compile, "identity": data.identity}
    evaluation = Evaluation(bench, evaluator.PLANS[preset], data, out, about, first)
    measured = evaluation.of_pair if len(models) == 2 else evaluation.by_guidance
    measured(*models, guidances)


@dataclass(frozen=True)
class Evaluation:
    """How models are measured, all that the figures depend on, and the folder they go to."""

    bench: Bench
    plan: Plan
    data: DataModule
    out: Path
    about: Row
    first: bool

    def of_pair(self, student: Checkpoint, teacher: Checkpoint, guidances: list[float]) -> None:
        """A student beside its teacher, under other guidances too: metrics.json and pictures."""
        settings = evaluator.settings(self.plan, student.config.student.guidance, guidances)
        drawn = [(one, student if one.model == "student" else teacher) for one in settings]
        measured, partial = self._measured("metrics", drawn)
        picture = self.out / "nearest.png" if self.first else None
        probed = probe(self.bench, measured, student, teacher, self.data, picture)
        if not self.first:
            return
        rows, extractors = measured.rows, self._extractors
        found = ratios(rows, extractors, list(measured.test.scores))
        targets = judged(found, student.spec.targets)
        figures = {"rows": rows, "ratios": found, "targets": targets, **probed}
        written = self._write("metrics", figures)
        points = report.points(rows, f"fd_{extractors[0]}")
        pictures = [
            plots.quality_time_plot(points, self.out / "quality_time.png"),
            plots.trajectory_plot(probed["trajectories"], self.out / "trajectories.png"),
            picture,
        ]
        partial.path.unlink(missing_ok=True)
        report.show(rows, found, targets, probed)
        console.console.print(", ".join(map(str, (written, *pictures))))

    def by_guidance(self, teacher: Checkpoint, guidances: list[float]) -> None:
        """A teacher under several guidances, of which its student is to have one."""
        sampler = self.plan.cheap[0]
        drawn = [(Setting("teacher", *sampler, guidance), teacher) for guidance in guidances]
        measured, partial = self._measured("guidance", drawn)
        if not self.first:
            return
        rows, extractors = measured.rows, self._extractors
        written = self._write("guidance", {"rows": rows})
        scores = list(measured.test.scores)
        picture = plots.guidance_plot(rows, extractors, scores, self.out / "guidance.png")
        partial.path.unlink(missing_ok=True)
        report.show_rows(rows, extractors)
        console.console.print(f"{written}, {picture}")

    @property
    def _extractors(self) -> list[str]:
        return [features.name for features in self.bench.features]

    def _measured(self, name: str, drawn: list[Drawn]) -> tuple[Measured, Partial]:
        check_replaced(self.out / f"{name}.json", self.about)
        partial = Partial(self.out / f"{name}.partial.json", self.about, self.first)
        return measure(self.bench, self.plan.reference, drawn, self.data, partial), partial

    def _write(self, name: str, figures: Row) -> Path:
        """Write what was found, with all that it depends on."""
        path = self.out / f"{name}.json"
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_text(path, json.dumps({**self.about, "date": date, **figures}, indent=2) + "\n")
        return path


def _data(model: Checkpoint, of_data: Overrides) -> tuple[DataModule, DictConfig]:
    """The real media that a model is compared with; UserError where it draws something else."""
    foreign.refuse(model.path, model.places, of_data)
    full_config = config.merge(model.config, ("command line", of_data))
    data = model.spec.data(full_config)
    data.setup()
    if tuple(data.shape) != model.data_shape:
        drawn = f"the {model.stage} draws {model.data_shape}"
        raise UserError(f"the data are {tuple(data.shape)}, {drawn}")
    theirs, ours = (_meant(model, schema) for schema in (data.condition, model.condition))
    for key in sorted({*theirs, *ours}):
        if (here := theirs.get(key, "none")) != (known := ours.get(key, "none")):
            raise UserError(
                f"the data have other conditions than the {model.stage}: {key} is {here[:200]}, "
                f"there {known[:200]}; give the data.* of its training"
            )
    return data, full_config


def _meant(model: Checkpoint, schema: Schema) -> dict[str, str]:
    """What each field's values mean, as a checkpoint says it: classes and their names, sizes."""
    plain = json.loads(json.dumps(schema_to_dict(schema)))
    return {key: str(field) for key, field in schema_from_dict(plain, model.spec.fields).items()}


def _bench(
    settings: DictConfig,
    model: Checkpoint,
    data: DataModule,
    full_config: DictConfig,
    preset: str,
    named: tuple[Features, ...],
) -> Bench:
    """With the extractors that are ``named``, by default the plugin's and its scorer's own."""
    spec, plan = model.spec, evaluator.PLANS[preset]
    scorer = spec.scorer(full_config, data)
    own = () if named else spec.features(full_config) + tuple(getattr(scorer, "features", ()))
    return Bench(
        features=named or _distinct(own),
        scorer=scorer,
        n=settings.n or spec.evaluation_samples.get(preset, plan.n),
        seed=settings.seed,
        batch_size=settings.batch_size,
        device=model.device,
    )


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


def _distinct(found: tuple[Features, ...]) -> tuple[Features, ...]:
    """Those of which no two are called the same; else UserError."""
    called = [features.name for features in found]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise UserError(f"two extractors are called {twice}: each needs a name of its own")
    return found


def _imported(name: str) -> Features:
    """An object of the class at `package.module:CLASS`."""
    module, _, kind = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), kind)()
        if not callable(found) or not isinstance(found.name, str):
            raise TypeError("it is no Features: those are called, and have a name")
        return found
    except UserError:
        raise
    except Exception as error:  # somebody's module may fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"features={name} cannot be used: {reason}") from error


def _guidances(given: Any) -> list[float]:
    """Those that were asked for, each once, none by default."""
    given = given if isinstance(given, (list, ListConfig)) else [] if given is None else [given]
    for one in given:
        if isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 <= one < math.inf:
            raise UserError(f"guidance={one} is no number from 0 on: guidance=[1,1.5,2]")
    return list(dict.fromkeys(map(float, given)))


def _models(settings: DictConfig, decoder: Any, alone: bool) -> tuple[Checkpoint, ...]:
    """The student and its teacher, or where it may be `alone` a teacher; UserError for all else."""
    student = open_checkpoint(settings.checkpoint, settings.modality, decoder)
    if student.stage == "teacher" and alone and not settings.teacher:
        return (student,)
    if student.stage != "student":
        raise UserError(
            f"{student.path} holds a {student.stage}; checkpoint= wants a student, or with "
            "guidance=[1,1.5,2] and no teacher= a teacher"
        )
    path = Path(settings.teacher or student.path.with_name("teacher.safetensors"))
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: name the student's teacher by teacher=")
    teacher = checkpoint.load(path, student.config.modality, student.device, decoder)
    if teacher.stage != "teacher" or teacher.shape != student.shape:
        raise UserError(f"{path} holds no teacher of samples {student.shape}; name it by teacher=")
    return student, teacher


def _about(
    models: tuple[Checkpoint, ...], full_config: DictConfig, bench: Bench, plan: Plan
) -> Row:
    """All that the figures depend on; rows of another description are not taken up again."""
    plain = config.plain(full_config)
    data = {
        key: value for key, value in plain["data"].items() if key not in ("root", "text_encoder")
    }
    decoder = {"decoder": plain["decoder"]} if "decoder" in plain else {}
    cuda = bench.device.type == "cuda"
    processor = f"CPU ({torch.backends.cpu.get_cpu_capability()}), {platform.machine()}"
    student = {
        "guidance": models[0].config.student.guidance,
        "last_time": models[0].ends[1],
    }
    return {
        "modality": models[0].config.modality,
        **{model.stage: {"step": model.step, "sha256": model.sha256} for model in models},
        **(student if models[0].stage == "student" else {}),
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
