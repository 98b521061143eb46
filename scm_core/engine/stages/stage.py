"""A backbone in training: through phases, each a weighted sum of objectives."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from scm_core import dual
from scm_core.base import distributed
from scm_core.contract.fields import Condition, Schema, drop_condition, null_condition
from scm_core.contract.objectives import Phase
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.engine import sharding
from scm_core.engine.replay import Replayed
from scm_core.method import samplers
from scm_core.method.guidance import Guided
from scm_core.method.objectives import Objective
from scm_core.method.proposal import LogNormalProposal
from scm_core.method.trigflow import Bounds, TrigFlow
from scm_core.networks import lora

BINS = 8
OPTIMIZERS = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam}
TANGENTS = {"dual": dual.jvp, "difference": dual.difference}


class Stage(lightning.LightningModule):
    """A backbone in training, and what `scm_core.method.objectives.Student` says of it.

    The teacher's `network` is frozen and stays out of checkpoints. `monitored` is the metric that
    tells how training goes, the one that the phase's first objective monitors (its name in
    `monitored_name`), averaged over recent steps for each of `BINS` equal bins of t in [0, pi/2];
    `last` are the newest batch's per-sample losses, times and values of it. `metrics` are the means
    of the loss and of all others over the batches of a step, which are `accumulate`.
    """

    sharded = False
    sigma_data = SIGMA_DATA
    path = TrigFlow(SIGMA_DATA)

    def __init__(
        self,
        backbone: nn.Module,
        phases: Sequence[Phase],
        objectives: Mapping[str, Objective],
        schema: Schema | None = None,
        network: nn.Module | None = None,
        guidance: float = 1.0,
        bounds: Bounds | None = None,
        jvp: Callable[..., tuple[Tensor, Tensor]] = dual.jvp,
        optimizer: str = "adam",
        last_time: float = samplers.LAST_TIME,
    ) -> None:
        super().__init__()
        self.backbone, self.phases, self.named = backbone, phases, dict(objectives)
        self.starts = list(itertools.accumulate((phase.steps for phase in phases[:-1]), initial=0))
        # Their names in a checkpoint; those of modules have no dots.
        self.objectives = nn.ModuleDict({k.replace(".", "/"): o for k, o in self.named.items()})
        self.trained = {key for key, p in self.objectives.named_parameters() if p.requires_grad}
        self.schema, self.guidance, self.bounds, self.jvp = schema, guidance, bounds, jvp
        self.optimizer, self.last_time, self.metrics = optimizer, last_time, {}
        # In a list it is no submodule: neither trained, nor saved, nor wrapped.
        self.frozen = [network.eval().requires_grad_(False)] if network else []
        self.evaluated_by = tuple(m for o in self.named.values() for m in o.methods)
        self.last: tuple[Tensor, Tensor, Tensor] | None = None
        self.enter(0)

    # What objectives ask.

    @property
    def teacher(self) -> Guided | None:
        null = partial(null_condition, self.schema)
        return Guided(self.evaluated[0], self.guidance, null) if self.frozen else None

    @property
    def step(self) -> int:
        return self.global_step - self.starts[self.phase]

    @property
    def steps(self) -> int:
        return self.length(self.phase, self.trainer.max_steps if self._trainer else -1)

    def noise(self, like: Tensor) -> Tensor:
        return SIGMA_DATA * distributed.randn_like(like)

    def noised(self, x0: Tensor, P_mean: float, P_std: float) -> tuple[Tensor, Tensor, Tensor]:
        times = LogNormalProposal(P_mean, P_std, SIGMA_DATA).sample
        t = distributed.shared(lambda n: times(n, x0.device), len(x0))
        noise = self.noise(x0)
        return self.path.interpolate(x0, noise, t), self.path.velocity(x0, noise, t), t

    def times(self, steps: int) -> Tensor:
        ends = samplers.ends(lora.whole(self.backbone), self.last_time, SIGMA_DATA)
        return samplers.consistency_times(steps, SIGMA_DATA, ends)

    def dropped(self, condition: Condition, share: float) -> Condition:
        return drop_condition(self.schema, condition, share)

    # Phases.

    def at(self, step: int) -> int:
        """The number of the phase that a step is of."""
        return bisect_right(self.starts, step) - 1

    def length(self, number: int, total: int) -> int:
        """The steps of a phase in a training of `total` steps (-1: not known)."""
        last = number == len(self.phases) - 1
        return total - self.starts[-1] if last and total > 0 else self.phases[number].steps

    def enter(self, number: int) -> None:
        """Train from now on what the phase of this number trains."""
        self.phase = number
        weights = self.phases[number].weights
        for name, objective in self.objectives.items():
            for key, parameter in objective.named_parameters():
                if f"{name}.{key}" in self.trained:
                    parameter.requires_grad_(name.replace("/", ".") in weights)
        first = self.named[next(iter(weights))]
        self.monitored_name, self.monitored = first.monitors, torch.full((BINS,), math.nan)

    @property
    def betas(self) -> tuple[float, float]:
        """Adam's in this phase."""
        asked = [self.named[name].betas for name in self.phases[self.phase].weights]
        return next((betas for betas in asked if betas), (0.9, 0.99))

    # The step.

    @property
    def accumulate(self) -> int:
        """Batches per step of the optimiser."""
        return self._trainer.accumulate_grad_batches if self._trainer else 1

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The weighted sum of the phase's objectives.

        The optimiser divides by `accumulate`, and the last step of an epoch may have fewer batches:
        then the sum is as much larger, so that gradients are means over all samples.
        """
        total, monitored, metrics = 0.0, None, {}
        for name, weight in self.phases[self.phase].weights.items():
            objective = self.named[name]
            loss, found = objective.loss(self, batch)
            total = total + weight * loss.mean()
            t = found.pop("t", torch.zeros_like(loss.detach()))
            if monitored is None:
                monitored = (
                    t,
                    found.pop(objective.monitors),
                    weight * (loss - loss.mean()).detach(),
                )
            metrics |= {f"{name}/{key}": m.detach().mean() for key, m in found.items()}
        t, value, spread = monitored
        self.monitor(total.detach() + spread, t, value)
        begun, place = divmod(index, self.accumulate)
        metrics["loss"] = total.detach()
        if place:
            old = metrics | self.metrics
            metrics = {k: torch.lerp(old[k], new, 1 / (place + 1)) for k, new in metrics.items()}
        self.metrics = metrics
        left = self.trainer.num_training_batches - begun * self.accumulate if self._trainer else 1
        return total * (self.accumulate / min(self.accumulate, left))

    def monitor(self, loss: Tensor, t: Tensor, value: Tensor) -> None:
        """Note a step's per-sample losses (B,) and its monitored metric (B,)."""
        self.last = (loss, t, value.detach())
        bins = (t * (BINS * 2 / math.pi)).long().clamp(0, BINS - 1)
        total = torch.zeros(BINS, device=t.device)
        count = total.clone().index_add_(0, bins, torch.ones_like(t))
        mean = total.index_add_(0, bins, value.detach().float()) / count
        self.monitored = self.monitored.to(t.device)
        old = torch.where(self.monitored.isnan(), mean, self.monitored)
        taken = torch.lerp(old, mean, 0.05 / self.accumulate)
        self.monitored = torch.where(mean.isnan(), self.monitored, taken)

    # The optimiser.

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What Adam trains, first what has the learning rate of the phase (its `lr` is None)."""
        own = [group for o in self.named.values() for group in o.parameter_groups()]
        known = {id(parameter) for group in own for parameter in group["params"]}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return [{"params": rest, "lr": None}, *own]

    def lr_at(self, step: int, total: int, own: float | None = None) -> float:
        """The learning rate at a step of `total`, of a group that has one of its `own` or not."""
        number = self.at(step)
        phase, begun = self.phases[number], step - self.starts[number]
        return (own or phase.lr) * cosine(begun, self.length(number, total), phase.lr_warmup)

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam or RAdam, with learning rates that change at every step."""
        groups, total = self.parameter_groups(), self.trainer.max_steps
        rates = [partial(self.lr_at, total=total, own=group["lr"]) for group in groups]
        groups = [{**group, "lr": 1.0} for group in groups]
        fused = {"fused": True} if self.fused else {}
        optimizer = OPTIMIZERS[self.optimizer](groups, betas=self.betas, **fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """A resumed run steps as this device can."""
        optimizer = self.trainer.optimizers[0]
        for group in optimizer.param_groups:
            group["fused"] = self.fused
        for parameter, state in optimizer.state.items() if self.fused else ():
            state["step"] = state["step"].to(parameter.device)  # where one kernel wants it

    @property
    def fused(self) -> bool | None:
        """Whether Adam is one kernel: on a GPU, but where gradients are clipped, which Lightning
        then refuses. RAdam has none."""
        clipped = self.trainer.gradient_clip_val or self.optimizer == "radam"
        return True if self.device.type == "cuda" and not clipped else None

    # The device.

    def networks(self) -> list[nn.Module]:
        """Every network that a step evaluates, once: adapters share theirs."""
        copies = [copy for o in self.named.values() for copy in o.networks()]
        found = [lora.whole(model) for model in (self.backbone, *self.frozen, *copies)]
        return list(dict.fromkeys(found))

    def configure_model(self) -> None:
        """Shard everything that has parameters, where the strategy is FSDP2."""
        if self.sharded or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        self.sharded = True
        mesh = init_device_mesh(self.trainer.strategy.root_device.type, (self.trainer.world_size,))
        for network in self.networks():
            sharding.shard(network, mesh, self.evaluated_by)
        for objective in self.named.values():  # around their copies of the backbone
            if any(True for _ in objective.parameters()):
                sharding.shard(objective, mesh, ("loss",))

    def on_fit_start(self) -> None:
        self.frozen = [network.to(self.device) for network in self.frozen]
        if self.frozen:  # shards are gathered anew at every evaluation
            network = self.frozen[0]
            # What is recorded has its weights in bf16, and a difference reads a LoRA's in float32.
            shared = isinstance(network, lora.Adapted) and self.jvp is dual.difference
            plain = self.sharded or shared
            # In a list, as `frozen` is.
            self.evaluated = [network if plain else Replayed(network, lora.whole(network))]
        self.bounds = self.bounds and tuple(bound.to(self.device) for bound in self.bounds)


def cosine(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to 0 at the last step; without a last step it stays at 1."""
    warm = min(1.0, (step + 1) / max(1, warmup))
    progress = min(1.0, step / total) if total > 0 else 0.0
    return warm * (1 + math.cos(math.pi * progress)) / 2
