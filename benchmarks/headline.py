"""Teacher against student, modality by modality: what a sample costs, and how good it is.

    python benchmarks/headline.py [key=value ...]

Keys:
  modality=[image,audio,video]   the shipped students, each with the teacher beside it
  batches=[1,4,16,64]            how many samples at a time; 1 is always among them
  rounds=7                       of which medians are taken
  out=runs/headline              folder for headline.md, headline.json and the plots

The teacher draws by its reference sampler, with guidance and without, the student in 1, 2 and 4
steps; rounds alternate between them. Distances are those that `scm_core.evaluate` left beside the
student. On a GPU untrained networks of 1.5 billion parameters follow, eager and compiled. Energy
needs counters: on a GPU `pip install nvidia-ml-py`, otherwise RAPL that may be read.
"""

from __future__ import annotations

import datetime
import itertools
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import energy
import torch
from omegaconf import OmegaConf

import scm_core
from scm_core.apps.opening import open_checkpoint
from scm_core.base import console
from scm_core.base.arguments import parse
from scm_core.base.device import best_device, resolve_precision
from scm_core.base.errors import UserError
from scm_core.base.files import write_text
from scm_core.contract.fields import Label
from scm_core.contract.spec import SIGMA_DATA
from scm_core.engine import checkpoint, config, sampling
from scm_core.evaluation import evaluator, plots, report
from scm_core.evaluation.evaluator import Bench, Row
from scm_core.networks import backbones

PLAN = evaluator.Plan(n=0, reference=0, teacher_samplers=evaluator.FULL[:1])
# A cost's key in a row: the head of its column, and the number there by what one sample takes.
COSTS: dict[str, tuple[str, Callable[[float], float]]] = {
    "sampling_seconds": ("ms, one at a time", lambda seconds: 1e3 * seconds),
    "seconds_per_sample": ("decoded", lambda seconds: 1e3 * seconds),
    "best_sampling_seconds": ("samples/s", lambda seconds: 1 / seconds),
    "best_seconds_per_sample": ("decoded", lambda seconds: 1 / seconds),
    "joules": ("J, one at a time", float),
    "best_joules": ("J, in batches", float),
}
LATENTS, CLASSES = (4, 64, 64), 1000  # of ImageNet at 512 x 512, as sCM's largest network has it
LARGE = (
    "Random weights in bf16, nothing decoded. Published for sCM at this size, with 1.5 billion "
    "parameters: 110 ms for two steps, one sample at a time, on one A100, not optimised. It is "
    "neither of these networks: the parameters are as many, the arithmetic is not the same."
)


@dataclass
class HeadlineConfig:
    """What is measured, how often, and where it is written to."""

    modality: Any = field(default_factory=lambda: ["image", "audio", "video"])
    batches: list[int] = field(default_factory=lambda: [1, 4, 16, 64])
    rounds: int = 7
    out: str = "runs/headline"


@dataclass(frozen=True)
class Pair:
    """A teacher and its student, by these names in `models`, and what the table says of them."""

    name: str
    about: str
    note: str
    guidance: float
    models: dict[str, Any]
    distances: dict[str, float] = field(default_factory=dict)
    large: bool = False


def main(arguments: list[str]) -> None:
    """Measure, print and write one table after another."""
    known = OmegaConf.structured(HeadlineConfig)
    settings = config.merge(known, ("command line", parse(arguments)))
    batches = sorted({1, *settings.batches})
    if batches[0] < 1 or settings.rounds < 1:
        raise UserError("batches and rounds must be at least 1")
    names, out = settings.modality, Path(settings.out)
    pairs = [shipped(name) for name in ([names] if isinstance(names, str) else names)]
    cuda = torch.cuda.is_available()
    meter = energy.of_gpu(best_device()) if cuda else energy.of_processors()
    about = {**machine(), "rounds": settings.rounds, "energy": meter and meter.name}
    texts, tables = [], []

    def say(text: str) -> None:
        print(text)
        texts.append(text)
        write_text(out / "headline.md", "\n".join(texts))

    facts = (f"{key} {value or 'not counted'}" for key, value in about.items())
    say(f"# Teacher against student\n\n{'; '.join(facts)}\n")
    say("In brackets: how many times better than the first row. Energy includes the decoding.\n")
    for pair in itertools.chain(pairs, large() if cuda else ()):  # one large network at a time
        rows = measure(pair, [1] if pair.large else batches, settings.rounds, meter)
        say(table(pair, rows))
        tables.append({"name": pair.name, "about": pair.about, "note": pair.note, "rows": rows})
        write_text(out / "headline.json", json.dumps({**about, "tables": tables}, indent=2) + "\n")
        if judged := [row for row in rows if row["distance"] is not None]:
            plots.quality_time_plot(report.points(judged, "distance"), out / f"{pair.name}.png")
    if not cuda:
        say("The networks of 1.5 billion parameters are left out: there is no GPU.")


def machine() -> Row:
    """What the figures depend on beside the weights."""
    device = best_device()
    cuda = device.type == "cuda"
    processor = f"CPU ({torch.backends.cpu.get_cpu_capability()}), {platform.machine()}"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else processor,
        "threads": torch.get_num_threads(),
        "precision": resolve_precision("auto", device.type),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "scm_core": scm_core.__version__,
        "torch": torch.__version__,
    }


def shipped(modality: str) -> Pair:
    """A modality's student with the teacher beside it, and their Fréchet distances if any."""
    student = open_checkpoint(None, modality)
    teacher = checkpoint.load(
        student.path.with_name("teacher.safetensors"), modality, student.device
    )
    models = {"teacher": teacher, "student": student}
    distances, metrics = {}, student.path.with_name("metrics.json")
    found = json.loads(metrics.read_text()) if metrics.exists() else None
    if not found:
        note = "No metrics.json lies beside the student: `python -m scm_core.evaluate` makes it."
    elif any(found[stage]["sha256"] != model.sha256 for stage, model in models.items()):
        note = "The metrics.json beside the student is of other weights: evaluate again."
    else:
        key = f"fd_{found['features']}"
        note = f"FD: {key} of {found['n']} samples, evaluated on {found['date'][:10]}."
        distances = {row["name"]: row[key] for row in found["rows"]}
    about, guidance = sizes(student.backbone, student.shape), student.config.student.guidance
    return Pair(student.spec.name, about, note, guidance, models, distances)


def large() -> Iterator[Pair]:
    """Networks of 1.5 billion parameters that have learnt nothing, eager and compiled."""
    device, condition = best_device(), {"label": Label(CLASSES)}
    for name in backbones.NETWORKS:
        with device:
            options = backbones.BackboneConfig(name=name, size="xxl")
            network = backbones.build(options, LATENTS, condition).bfloat16().eval()
        network.time.float()  # t and its embedding stay in float32

        def fast(*inputs: Any, network: Any = network) -> torch.Tensor:
            with torch.autocast(device.type, torch.bfloat16):
                return network(*inputs)

        model = SimpleNamespace(
            model=fast,
            shape=LATENTS,
            condition=condition,
            sigma_data=SIGMA_DATA,
            codec=SimpleNamespace(decode=lambda x: x, seconds=lambda media: None),
        )
        about, models = sizes(network, LATENTS), {"teacher": model, "student": model}
        # Any guidance but 1 costs the same.
        yield Pair(f"{name}, eager", about, LARGE, 1.5, models, large=True)
        network.compile(dynamic=False)
        yield Pair(f"{name}, compiled", about, LARGE, 1.5, models, large=True)


def sizes(network: torch.nn.Module, shape: tuple[int, ...]) -> str:
    """How large a network and its samples are."""
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    return f"{parameters:,.1f} million parameters, {' × '.join(map(str, shape))}"


def measure(
    pair: Pair, batches: list[int], rounds: int, meter: energy.Counters | None
) -> list[Row]:
    """A row for each setting, the reference first: of one sample, and at the best batch sizes."""
    settings = sorted(evaluator.settings(PLAN, pair.guidance), key=lambda s: s.model, reverse=True)
    measured = [costs(pair, settings, n, rounds, meter) for n in batches]
    rows: list[Row] = []
    for setting, each in zip(settings, zip(*measured, strict=True), strict=True):
        row = {"name": setting.name, **vars(setting), "distance": pair.distances.get(setting.name)}
        row |= {**each[0], "batches": each}
        for key in ("sampling_seconds", "seconds_per_sample"):
            best = min(each, key=lambda cost: cost[key])
            row |= {f"best_{key}": best[key], f"best_{key}_batch": best["batch"]}
        row["best_joules"] = best["joules"]
        rows.append(row)
        row["gains"] = {key: rows[0][key] / row[key] for key in COSTS if row[key]}
    return rows


def costs(
    pair: Pair, settings: list[Any], n: int, rounds: int, meter: energy.Counters | None
) -> list[Row]:
    """What a sample of each setting costs, `n` drawn at a time: medians of rounds."""
    bench = Bench(
        features=(),
        scorer=lambda media, condition: {},
        n=n,
        seed=0,
        batch_size=n,
        device=best_device(),
    )

    def draw(setting: evaluator.Setting) -> Row:
        model = pair.models[setting.model]
        condition = sampling.cycled_condition(model.condition, n)
        return bench.draw(model, setting, condition, lambda _: None)[1]

    # The first round, in which memory is allocated and networks are compiled, does not count.
    drawn = [[draw(setting) for setting in settings] for _ in range(rounds + 1)][1:]
    found = []
    for setting, each in zip(settings, zip(*drawn, strict=True), strict=True):
        keys = ("nfe", "sampling_seconds", "seconds_per_sample")
        cost = {key: statistics.median(one[key] for one in each) for key in keys}
        joules = meter and meter.joules(lambda setting=setting: draw(setting))
        found.append({"batch": n, **cost, "joules": joules and joules / n})
    return found


def table(pair: Pair, rows: list[Row]) -> str:
    """The rows in Markdown, with a title and a note."""
    heads = ["", "NFE", *(head for head, _ in COSTS.values()), "FD"]
    lines = [f"## {pair.name}: {pair.about}\n", f"| {' | '.join(heads)} |"]
    lines.append("|---|" + "---:|" * (len(heads) - 1))
    for row in rows:
        costs = ("–" if pair.large and "per_sample" in key else cell(row, key) for key in COSTS)
        distance = "–" if row["distance"] is None else figure(row["distance"])
        lines.append(f"| {' | '.join([row['name'], figure(row['nfe']), *costs, distance])} |")
    return "\n".join([*lines, f"\n{pair.note}\n"])


def cell(row: Row, key: str) -> str:
    """A cost, the batch size where it was chosen, and how many times better than the reference."""
    if not row[key]:
        return "–"
    chosen = f" at {row[f'{key}_batch']}" if f"{key}_batch" in row else ""
    return f"{figure(COSTS[key][1](row[key]))}{chosen} ({figure(row['gains'][key])}×)"


def figure(value: float) -> str:
    """Three figures, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    console.run(main, __doc__)
