"""What `objectives` measures of a student in training, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig

from scm_core.base.device import best_device
from scm_core.contract.spec import SIGMA_DATA, Batch, DataModule, ModalitySpec
from scm_core.engine import sampling
from scm_core.engine.callbacks import Averaging, OnOptimizerStep
from scm_core.engine.previews import averaged
from scm_core.engine.stages import Stage
from scm_core.evaluation.evaluator import Bench, Setting
from scm_core.method.objectives.consistency import Consistency
from scm_core.method.objectives.endpoint import Endpoint

Row = dict[str, float]
STEPS = 1, 2, 4
PROBE = 256  # samples of which |g| and the distance to the teacher's end points are means


class Judge:
    """Distances of `n` samples to `reference` real ones, always by the same noise and classes."""

    def __init__(
        self,
        spec: ModalitySpec,
        settings: DictConfig,
        data: DataModule,
        n: int,
        reference: int,
        batch: int = 256,
    ) -> None:
        scorer, self.device = spec.scorer(settings, data), best_device()
        extractors = *spec.features(settings), *scorer.features
        self.bench = Bench(extractors, scorer, n, 0, batch, self.device)
        self.real = self.bench.reference(data, reference, _unseen)
        self.codec = spec.codec(settings, data.statistics)
        self.shape, self.schema, self.bounds = data.shape, data.condition, data.bounds
        probe = data.train_set.__getitems__(list(range(PROBE)))
        self.probe = Batch(probe.x, dict(probe.condition))

    @property
    def names(self) -> list[str]:
        """Of the extractors, the one by which recipes were chosen first."""
        return [features.name for features in self.bench.features]

    def samples(self, model: Any, sampler: str, steps: int, guidance: float = 1.0) -> Row:
        """Of what a model makes by that sampler in so many steps, class accuracy included."""
        drawn = SimpleNamespace(
            model=model,
            sigma_data=SIGMA_DATA,
            shape=self.shape,
            condition=self.schema,
            codec=self.codec,
            ends=None,
        )
        setting = Setting("", sampler, steps, guidance)
        condition = sampling.cycled_condition(self.schema, self.bench.n)
        return self.bench.quality(self.real, self.bench.draw(drawn, setting, condition, _unseen)[0])

    def tangent(self, stage: Stage) -> Row:
        """|g| of the consistency loss at r = 1, and the mean distance of f(x_t, t) to where the
        teacher's own trajectory through x_t ends, both in units of the data."""
        of_stage, stage.bounds = stage.bounds, self.bounds
        if self.bounds:
            stage.bounds = tuple(bound.to(self.device) for bound in self.bounds)
        found = {}
        probe = Batch(
            self.probe.x.to(self.device),
            {key: value.to(self.device) for key, value in self.probe.condition.items()},
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for name, objective in (
                ("|g|", Consistency(Consistency.Options(tangent_warmup=0))),
                ("error", Endpoint(Endpoint.Options())),
            ):
                with torch.no_grad():
                    _, metrics = objective.to(self.device).loss(stage, probe)
                found[name] = metrics[name].mean().item()
        stage.bounds = of_stage
        return found


def _unseen(_: int) -> None:
    """Progress that nobody is told of."""


class Watch(OnOptimizerStep):
    """A clock that stands still while the judge looks at the EMA weights, after these steps.

    With a `limit` of seconds it ends the run instead, to find what a step costs.
    """

    def __init__(
        self, judge: Callable[..., Row] | None, at: list[int], limit: float | None = None
    ) -> None:
        """`judge` is given the stage, whether this is the end, and a function that opens a context
        of the precision that networks are evaluated in, which those that judge are not."""
        self.judge, self.at, self.limit = judge, at, limit
        self.spent, self.rows, self.times = 0.0, [], []

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        super().on_train_start(trainer, stage)
        self.began = now()

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if not self.stepped(trainer):
            return
        step = trainer.global_step
        if self.limit is not None:
            self.times.append(now() - self.began)
            trainer.should_stop = self.times[-1] > self.limit and len(self.times) > 4
        elif step in self.at:
            self.spent += now() - self.began
            averaging = next(c for c in trainer.callbacks if isinstance(c, Averaging))
            precision = trainer.precision_plugin.forward_context
            with averaged(stage.backbone, averaging.ema):
                row = self.judge(stage, step == self.at[-1], precision)
            self.rows.append({"step": step, "seconds": self.spent, **row})
            self.began = now()

    @property
    def step_seconds(self) -> float:
        """Of a step, without the first two."""
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2)


def now() -> float:
    """Seconds on a clock that has waited for the device; on a CPU those that this process had of
    it, per thread, so that other work on the machine costs nobody steps."""
    if not torch.cuda.is_available():
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize()
    return time.perf_counter()
