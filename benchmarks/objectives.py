"""Students by one objective after another, from one teacher, for equal time and for equal samples.

    python benchmarks/objectives.py [--seconds 600] [--batch 128] [--variants l2,rms] [--seeds 3]

Images, from the shipped teacher or that of --teacher. A variant trains for --seconds on a clock
that stands still while it is judged: first a few steps tell what a step costs, then it has as many
as fit, and learning rates end with them. On a CPU seconds are the process's own, per thread. For
equal samples (--budgets) all have as many steps as the dearest has in that time.

Every run is the project's own training, with the phases that VARIANTS says, judged by FD, precision
and recall in each of the modality's extractors and in the features of a classifier trained on the
data, in 1, 2 and 4 steps. Results go to --out as results.json, results.md and plots. A run that is
done is not repeated, and another --variants, --budgets or --seeds adds to what is there.

For a GPU and ten minutes: --seconds 20 --seeds 1 --budgets time --batch 512 --points 2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from judging import STEPS, Judge, Row, Watch
from lightning import Trainer
from objectives_table import BUDGETS, curves, table
from omegaconf import DictConfig
from torch import Tensor

from scm_core.base import console
from scm_core.base.device import best_device
from scm_core.base.errors import UserError
from scm_core.base.files import Lock, write_text
from scm_core.contract import objectives
from scm_core.contract import spec as modalities
from scm_core.engine import checkpoint
from scm_core.engine.refusals import check
from scm_core.engine.run import Run
from scm_core.engine.stages import Stage
from scm_core.evaluation import plots

MODALITY, SOLVER = "image", ("dpm", 12)  # the teacher's best sampler
SCORE = {"rollouts": [2, 2, 4], "P_mean": -1.6, "P_std": 2.0}  # as configs/image/cpu.yaml has it
HUGE = 1 << 40  # steps: never


@dataclass(frozen=True)
class Variant:
    """What follows mid-training, which has the share `mid` of the time, and how."""

    about: str
    weights: dict[str, float] = field(default_factory=dict)
    norm: str = "l2"
    c: float = 0.1
    lr: float = 1e-4
    mid: float | None = None
    optimizer: str = "adam"


L2, RMS = "consistency, l2", "consistency, rms"
BARE, HEAVY = "tangents:Unmasked", "tangents:Momentum"
TANGENTS = "consistency", BARE, HEAVY
VARIANTS = {
    "mid": Variant("mid-training alone", mid=1.0),
    "l2": Variant(L2, {"consistency": 1}),
    "rms": Variant(RMS, {"consistency": 1}, "rms"),
    "clamp": Variant("consistency, g within ±1", {"consistency": 1}, "clamp", 1.0),
    "l2-unmasked": Variant(f"{L2}, tangent not masked", {BARE: 1}),
    "rms-unmasked": Variant(f"{RMS}, tangent not masked", {BARE: 1}, "rms"),
    "l2-teacher": Variant(f"{L2}, from the teacher", {"consistency": 1}, mid=0.0),
    "rms-teacher": Variant(f"{RMS}, from the teacher", {"consistency": 1}, "rms", mid=0.0),
    "l2-momentum": Variant(f"{L2}, momentum", {HEAVY: 1}),
    "l2-radam": Variant(f"{L2}, RAdam", {"consistency": 1}, optimizer="radam"),
    "score-0.01": Variant(f"{L2} + 0.01 score", {"consistency": 1, "distribution_matching": 0.01}),
    "score-0.1": Variant(f"{L2} + 0.1 score", {"consistency": 1, "distribution_matching": 0.1}),
    "score-1": Variant(f"{L2} + score", {"consistency": 1, "distribution_matching": 1}),
    "anchor": Variant(f"{L2} + flow anchor", {"consistency": 1, "flow_anchor": 1}),
    "discrete": Variant("discrete consistency (ECT)", {"discrete_consistency": 1}),
    "score": Variant("score regulariser alone", {"distribution_matching": 1}, lr=7e-5),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--teacher", default=f"checkpoints/{MODALITY}/teacher.safetensors", type=Path)
    add("--root", help="folder of the data (data.root)")
    add("--variants", default=",".join(VARIANTS), help="of " + ", ".join(VARIANTS))
    add("--budgets", default=",".join(BUDGETS), help="time, samples or both")
    add("--seconds", default=600.0, type=float, help="of training, per run")
    add("--seeds", default=3, type=int, help="how many")
    add("--batch", default=128, type=int)
    add("--accumulate", default=1, type=int, help="batches per optimiser step")
    add("--mid", default=0.3, type=float, help="share of the time that mid-training has")
    add("--guidance", default=1.5, type=float)
    add("--n", default=2000, type=int, help="samples per row")
    add("--reference", default=10_000, type=int, help="real samples to compare with")
    add("--points", default=4, type=int, help="of a run at which two steps are judged")
    add("--out", default="runs/objectives", type=Path)
    given = parser.parse_args()
    given.variants, given.budgets = given.variants.split(","), given.budgets.split(",")
    for key, known in (("variants", VARIANTS), ("budgets", BUDGETS)):
        if wrong := [name for name in getattr(given, key) if name not in known]:
            parser.error(f"--{key} {wrong[0]} is none of {', '.join(known)}")
    if min(given.seconds, given.seeds, given.points, given.n - 3) <= 0 or not 0 < given.mid < 1:
        parser.error("--seconds, --seeds, --points and --n must be above 0, --mid between 0 and 1")
    return given


class Watched(Run):
    """A run with a callback more."""

    watch: Watch

    def _trainer(self, *given: Any) -> Trainer:
        trainer = super()._trainer(*given)
        trainer.callbacks.insert(1, self.watch)  # after the average, before seeds are set anew
        return trainer


class Comparison:
    """All runs, what is known of them, and the folder where that is written."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out, self.path = given, given.out, given.out / "results.json"
        self.teacher = checkpoint.load(given.teacher, MODALITY, best_device())
        plain = {k: v for k, v in vars(given).items() if k not in ("out", "root", "teacher")}
        chosen = ("variants", "budgets", "seeds")
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        self.about = {k: v for k, v in plain.items() if k not in chosen}
        self.about |= {"teacher": self.teacher.sha256, "device": gpu}
        self.found: dict[str, Any] = {"about": self.about, "step_seconds": {}, "runs": {}}
        if self.path.exists():
            self.found = json.loads(self.path.read_text())
            if self.found["about"] != self.about:
                raise UserError(f"{self.path} is of other settings: choose another --out")
        self.spec = modalities.get(MODALITY)
        settings = self.settings("", {}, 0)
        data = self.spec.data(settings)
        data.setup()
        self.judge = Judge(self.spec, settings, data, given.n, given.reference)

    def settings(self, name: str, student: dict[str, Any], seed: int) -> DictConfig:
        """The teacher's own configuration, with this student and nothing that takes time."""
        settings, given = self.teacher.config.copy(), self.given
        settings.seed, settings.stage, settings.preset = seed, "student", "objectives"
        settings.out = str(self.out / "runs" / name)
        settings.data.root, settings.data.batch_size = given.root, given.batch
        for section, values in (
            ("trainer", {"accumulate": given.accumulate, "gradient_clip": None, "compile": False}),
            ("trainer", dict.fromkeys(("checkpoint_every", "preview_every", "log_every"), HUGE)),
            ("student", {"method": "distill", "guidance": given.guidance, "ema": 0.1}),
            ("student", {"max_steps": None, "options": {}, **student}),
        ):
            for key, value in values.items():
                settings[section][key] = value
        return settings

    def train(self, name: str, student: dict[str, Any], seed: int, watch: Watch) -> None:
        """By the project's own training, anew in a folder of that name."""
        settings = self.settings(name, student, seed)
        folder = Path(settings.out)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(self.given.teacher, folder / "teacher.safetensors")
        check(settings)
        objectives.state(settings.student)
        with Lock(folder) as lock:
            run = Watched(self.spec, settings, lock)
            run.watch = watch
            run.train("student")
        shutil.rmtree(folder / "student")  # what it would resume from

    def cost(self, student: dict[str, Any]) -> float:
        """Seconds of a step of its one phase."""
        (phase,) = student["phases"]
        key = json.dumps({k: v for k, v in phase.items() if k != "lr"})
        known = self.found["step_seconds"]
        if key not in known:
            console.console.print(f"what a step costs: {key}")
            watch = Watch(None, [], limit=max(1.0, 0.05 * self.given.seconds))
            self.train("cost", {**student, "phases": [{**phase, "steps": HUGE}]}, 0, watch)
            known[key] = watch.step_seconds
            self.write()
        return known[key]

    def split(self, variant: Variant) -> list[tuple[dict[str, Any], float]]:
        """A student of each of its phases alone, and the share of the time that it has."""
        mid = self.given.mid if variant.mid is None else variant.mid
        c = {"norm": variant.norm, "c": variant.c}
        options = {**dict.fromkeys(TANGENTS, c), "distribution_matching": SCORE}
        options = {name: options[name] for name in variant.weights if name in options}
        first = {"phases": [{"endpoint": 1.0, "lr": 1e-3}], "options": {}}
        last = {"phases": [{**variant.weights, "lr": variant.lr}], "options": options}
        parts = [(first, mid), (last, 1 - mid)]
        return [({**s, "optimizer": variant.optimizer}, share) for s, share in parts if share > 0]

    def plan(self, variant: Variant, total: int | None) -> dict[str, Any]:
        """Its student, of as many steps as its time has or, with the same shares, of `total`."""
        parts = self.split(variant)
        if total is None:
            counts = [share * self.given.seconds / self.cost(part) for part, share in parts]
        else:
            counts = [share * total for _, share in parts]
        student = {"phases": [], "options": {}, "optimizer": variant.optimizer}
        for (part, _), steps in zip(parts, [max(1, round(count)) for count in counts], strict=True):
            warmup = min(100, steps // 10)
            student["phases"].append({**part["phases"][0], "steps": steps, "lr_warmup": warmup})
            student["options"] |= part["options"]
            for name in TANGENTS:
                if name in part["options"]:
                    ramp = {"tangent_warmup": round(0.3 * steps)}
                    student["options"][name] = part["options"][name] | ramp
        return student

    def watch(self, student: dict[str, Any]) -> Watch:
        """A clock and its judge for a student's phases."""
        total, points = steps_of(student), self.given.points
        at = sorted({max(1, total * i // points) for i in range(1, points + 1)})

        def judged(stage: Stage, last: bool, precision: Callable[[], Any]) -> Row:
            def model(*given: Any) -> Tensor:
                with precision():
                    return stage.backbone(*given)

            with precision():
                found = self.judge.tangent(stage)
            for steps in STEPS if last else (2,):
                row = self.judge.samples(model, "consistency", steps)
                found |= {f"{key} {steps}": value for key, value in row.items()}
            return found

        return Watch(judged, at)

    def runs(self) -> Iterator[tuple[str, dict[str, Any], int]]:
        """The name, student and seed of each run."""
        chosen, seeds = self.given.variants, range(self.given.seeds)
        timed = {name: self.plan(VARIANTS[name], None) for name in chosen}
        fewest = min(map(steps_of, timed.values()))
        equal = {name: self.plan(VARIANTS[name], fewest) for name in chosen}
        for seed in seeds:  # so that a comparison which is cut short has whole seeds
            for budget, plans in (("time", timed), ("samples", equal)):
                for name in chosen if budget in self.given.budgets else ():
                    yield f"{name}/{budget}/{seed}", plans[name], seed

    def write(self) -> None:
        write_text(self.path, json.dumps(self.found, indent=1) + "\n")

    def __call__(self) -> None:
        """Every run that is not yet done, then the table and the plots."""
        given, done = self.given, self.found["runs"]
        if "teacher" not in self.found:
            self.found["teacher"] = self.judge.samples(self.teacher.model, *SOLVER, given.guidance)
            self.write()
        runs = list(self.runs())
        for i, (name, student, seed) in enumerate(runs, 1):
            if done.get(name, {}).get("student") != student:
                console.console.print(f"{i}/{len(runs)} {name}: {steps_of(student)} steps")
                watch = self.watch(student)
                self.train(name, student, seed, watch)
                done[name] = {"student": student, "points": watch.rows}
                self.write()
        titles = {name: variant.about for name, variant in VARIANTS.items()}
        text = table(self.found, titles, self.judge.names)
        write_text(self.out / "results.md", text)
        print(text)
        for name, budget in itertools.product(self.judge.names, given.budgets):
            key, batch = f"fd_{name} 2", given.batch * given.accumulate
            drawn = curves(done, titles, budget, key, batch)
            path = self.out / f"{name}-{budget}.png"
            labels = BUDGETS[budget], f"FD in {name}, two steps"
            plots.curves_plot(drawn, path, labels, f"Quality over time, equal {budget}")


def steps_of(student: dict[str, Any]) -> int:
    return sum(phase["steps"] for phase in student["phases"])


if __name__ == "__main__":
    console.quieten()
    try:
        Comparison(arguments())()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on with the next run") from None
