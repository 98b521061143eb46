"""What an evaluation computes: real references, and one row per sampler."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scm_core.base import distributed
from scm_core.base.errors import UserError
from scm_core.contract.fields import Condition
from scm_core.contract.spec import Codec, DataModule, Features, Scorer
from scm_core.engine import sampling
from scm_core.engine.checkpoint import Checkpoint
from scm_core.evaluation.metrics import frechet_distance, kernel_distance, precision_recall
from scm_core.method.samplers import CountedModel

NEIGHBOURS = 3  # k of precision and recall
Row = dict[str, Any]
Advance = Callable[[int], None]  # is told how many samples more have been dealt with
Samplers = tuple[tuple[str, int], ...]  # (name, steps) each


@dataclass(frozen=True)
class Plan:
    """How large an evaluation is: ``n`` samples a row, against ``reference`` training samples.

    ``teacher_samplers`` are used with the student's guidance, the first one being the reference;
    those that are ``cheap`` also without any and with others. Each of ``student_steps`` is one row.
    """

    n: int
    reference: int
    teacher_samplers: Samplers
    cheap: Samplers = ()
    student_steps: tuple[int, ...] = (1, 2, 4, 8)


SHORT = (("heun", 32), ("dpm", 12), ("dpm", 6)), (("dpm", 12),)
FULL = (("heun", 32), ("dpm", 12), ("dpm", 8), ("dpm", 6), ("ddim", 8))
CHEAP = (("dpm", 12), ("ddim", 8))  # and strong: the teacher's best row may be one of no guidance
PLANS = {
    "smoke": Plan(32, 200, *SHORT),
    "demo": Plan(500, 2_000, *SHORT),
    "cpu": Plan(5_000, 10_000, FULL, CHEAP),
    "gpu": Plan(5_000, 10_000, FULL, CHEAP),
}


@dataclass(frozen=True)
class Setting:
    """One way to draw samples: which model, by which sampler, in how many steps."""

    model: str  # teacher or student
    sampler: str
    steps: int
    guidance: float = 1.0

    @property
    def name(self) -> str:
        """As it is printed, for example "teacher, heun 32 steps, guidance 1.5"."""
        if self.model == "student":
            return f"student, {self.steps} step{'s' * (self.steps > 1)}"
        return f"teacher, {self.sampler} {self.steps} steps, guidance {self.guidance:g}"


def settings(plan: Plan, guidance: float, others: Iterable[float] = ()) -> list[Setting]:
    """Every way to draw samples that has a row: the student's, then the teacher's.

    The teacher has the student's `guidance`, then none, then each of the `others`.
    """
    rows = [Setting("student", "consistency", steps) for steps in plan.student_steps]
    rows += [Setting("teacher", *sampler, guidance) for sampler in plan.teacher_samplers]
    rows += [Setting("teacher", *way, one) for one in (1.0, *others) for way in plan.cheap]
    return list(dict.fromkeys(rows))


@dataclass(frozen=True)
class Samples:
    """Real or drawn samples: features (N, D) and scores (N,), each by name, and conditions."""

    features: dict[str, Tensor]
    condition: Condition
    scores: dict[str, Tensor]

    def mean_scores(self) -> Row:
        """The mean of each score."""
        return {key: value.double().mean().item() for key, value in self.scores.items()}


@dataclass(frozen=True)
class Bench:
    """What all rows are measured with: instruments, sample count ``n``, seed, batch size.

    The first of the ``features`` are those that choices are made in, the others only report.
    """

    features: tuple[Features, ...]
    scorer: Scorer
    n: int
    seed: int
    batch_size: int
    device: torch.device

    def reference(self, data: DataModule, n: int, advance: Advance) -> dict[str, Tensor]:
        """Features (N, D) of up to ``n`` real training media, in the order that the seed gives."""
        torch.manual_seed(sampling.fold(self.seed))
        found: list[dict[str, Tensor]] = []
        taken = 0
        for media, _ in data.real("train"):
            media = media[: n - taken]
            found.append(self._features(media.to(self.device)))
            taken += len(media)
            advance(len(media))
            if taken >= n:
                break
        return _cat(found)

    @torch.no_grad()
    def test(self, data: DataModule, advance: Advance, through: Codec | None = None) -> Samples:
        """Up to ``n`` real media of the held-out split, chosen at random by the seed.

        They are first encoded and decoded where ``through`` is a codec, whose fidelity is then
        among the scores. Raises UserError when there are too few to compare with.
        """
        total = sum(len(batch.x) for batch in data.val_dataloader())
        if total <= NEIGHBOURS:
            raise UserError(f"the held-out split has {total} samples, too few to compare with")
        chosen = torch.randperm(
            total, generator=torch.Generator().manual_seed(sampling.fold(self.seed))
        )[: self.n]
        parts, passed = [], 0
        for media, condition in data.real("test"):
            here = (chosen - passed).sort().values
            here = here[(here >= 0) & (here < len(media))]
            passed += len(media)
            if not len(here):
                continue
            media, near = media[here].to(self.device), {}
            if through:
                original, media = media, through.decode(through.encode(media))
                near = through.fidelity(original, media)
            condition = {key: value[here].to(self.device) for key, value in condition.items()}
            parts.append(self._measure(media, condition, near))
            advance(len(here))
        return _join(parts, chosen.argsort().argsort())

    @torch.no_grad()
    def draw(
        self, model: Checkpoint, setting: Setting, condition: Condition, advance: Advance
    ) -> tuple[Samples, Row]:
        """``n`` samples and what one of them cost; sample i takes condition i modulo their number.

        The noise is the same for every setting. Processes that work together take batches in turn;
        the cost is as the first of them sees it. Seconds are medians over the batches of full size,
        divided by that size: other work on the machine, and the first batch, disturb only a few.
        Where the decoder knows how long media last, so does the cost: ``real_time_factor`` is that
        over all seconds spent.
        """
        counted = CountedModel(model.model)
        sampler = sampling.sampler(
            setting.sampler,
            setting.steps,
            model.sigma_data,
            setting.guidance,
            model.condition,
            model.ends,
        )
        parts, seconds = [], []
        for part in distributed.round_robin(sampling.batches(self.n, self.batch_size)):
            places = torch.arange(part.start, part.stop)
            there = {k: v[places % len(v)].to(self.device) for k, v in condition.items()}
            noise = sampling.seeded_noise(
                model.shape, len(places), self.seed, model.sigma_data, first=part.start
            ).to(self.device)
            fresh = sampling.fresh_noise(self.seed, part.start)
            started = self._now()
            x = sampler(counted, noise, there, fresh)
            sampled = self._now()
            media = model.codec.decode(x)
            if len(places) == min(self.n, self.batch_size):
                spent = torch.tensor([sampled - started, self._now() - sampled])
                seconds.append(spent.double() / len(places))
                nfe, last = counted.nfe(len(places) * len(seconds)), media
            parts.append(self._measure(media, there, {}))
            advance(len(places))
        cost = _cost(model, nfe, torch.stack(seconds), last) if seconds else None
        return _join(distributed.interleaved(parts)), distributed.all_gather(cost)[0]

    def quality(self, reference: dict[str, Tensor], samples: Samples) -> Row:
        """Distances to the training ``reference``, precision, recall and mean scores, by name.

        Precision and recall compare with as many reference samples as there are samples, for they
        are defined on sets of one size.
        """
        row: Row = {}
        for name, found in samples.features.items():
            generator = torch.Generator().manual_seed(sampling.fold(self.seed))
            kid, spread = kernel_distance(reference[name], found, generator=generator)
            equal = reference[name][: len(found)]
            precision, recall = precision_recall(equal, found, k=NEIGHBOURS)
            row |= {
                f"fd_{name}": frechet_distance(reference[name], found),
                f"kid_{name}": kid,
                f"kid_{name}_std": spread,
                f"precision_{name}": precision,
                f"recall_{name}": recall,
            }
        return {**row, **samples.mean_scores()}

    def _measure(self, media: Any, condition: Condition, near: dict[str, Tensor]) -> Samples:
        scores = {**self.scorer(media, condition), **near}
        scores = {key: value.cpu() for key, value in scores.items()}
        condition = {key: value.cpu() for key, value in condition.items()}
        return Samples(self._features(media), condition, scores)

    def _features(self, media: Any) -> dict[str, Tensor]:
        found = {features.name: features(media).cpu() for features in self.features}
        for name, rows in found.items():
            if not fit(rows, media):
                raise UserError(
                    f"the extractor {name} gives {tuple(rows.shape)} of a batch of media: features "
                    "are (N, D), one row for each"
                )
        return found

    def _now(self) -> float:
        """Seconds on a clock that has waited for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def fit(features: Tensor, media: Any) -> bool:
    """Whether they are (N, D) of N media."""
    return features.ndim == 2 and len(features) == sum(1 for _ in media)


def _cost(model: Checkpoint, nfe: float, seconds: Tensor, media: Any) -> Row:
    """What a sample costs, by the seconds for sampling and decoding one in each batch (B, 2)."""
    sampling, decoding = (statistics.median(column) for column in seconds.T.tolist())
    cost = {
        "nfe": nfe,
        "seconds_per_sample": sampling + decoding,
        "sampling_seconds": sampling,
        "decoding_seconds": decoding,
    }
    if lasts := model.codec.seconds(media):
        cost |= {"media_seconds": lasts, "real_time_factor": lasts / cost["seconds_per_sample"]}
    return cost


def _join(parts: list[Samples], chosen: Tensor | slice = slice(None)) -> Samples:
    """Batches as one set, of which ``chosen`` are kept."""
    return Samples(
        *(
            _cat([getattr(part, field) for part in parts], chosen)
            for field in ("features", "condition", "scores")
        )
    )


def _cat(parts: list[dict[str, Tensor]], chosen: Tensor | slice = slice(None)) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in parts])[chosen] for key in parts[0]}
