"""What stages share: the backbone, the optimiser, the figures logged, and noised data."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from scm_core.base import distributed
from scm_core.contract.fields import Schema
from scm_core.contract.spec import SIGMA_DATA
from scm_core.engine import sharding
from scm_core.method.proposal import LogNormalProposal
from scm_core.method.trigflow import TrigFlow
from scm_core.networks.layers import LearnedWeight

BINS = 8


class Stage(lightning.LightningModule):
    """A backbone in training. `config` is the stage's section of the configuration.

    `watched` is the figure that tells how training goes (its name in `watched_name`), averaged over
    recent steps for each of `BINS` equal bins of t in [0, pi/2].
    """

    watched_name: str
    evaluated_by: tuple[str, ...] = ()  # the networks' methods beside `forward`
    sharded = False

    def __init__(self, backbone: nn.Module, config: Any) -> None:
        super().__init__()
        self.backbone, self.config = backbone, config
        self.forget_watched()
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def networks(self) -> list[nn.Module]:
        """Every network that a step evaluates."""
        return [self.backbone]

    def configure_model(self) -> None:
        """Shard everything that has parameters, where the strategy is FSDP2."""
        if self.sharded or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        self.sharded = True
        mesh = init_device_mesh(self.trainer.strategy.root_device.type, (self.trainer.world_size,))
        for module in {*self.children(), *self.networks()}:
            sharding.shard(module, mesh, self.evaluated_by)

    def forget_watched(self) -> None:
        """Start the average anew, where the watched figure changes its meaning."""
        self.watched = torch.full((BINS,), math.nan)

    def watch(self, loss: Tensor, t: Tensor, value: Tensor) -> None:
        """Note a step's per-sample losses (B,) and its watched figure (B,)."""
        self.last = (loss.detach(), t, value.detach())
        bins = (t * (BINS * 2 / math.pi)).long().clamp(0, BINS - 1)
        total = torch.zeros(BINS, device=t.device)
        count = total.clone().index_add_(0, bins, torch.ones_like(t))
        mean = total.index_add_(0, bins, value.detach().float()) / count
        self.watched = self.watched.to(t.device)
        old = torch.where(self.watched.isnan(), mean, self.watched)
        self.watched = torch.where(mean.isnan(), self.watched, torch.lerp(old, mean, 0.05))

    def on_train_start(self) -> None:
        """A resumed run follows the learning rates asked for now, not the stored ones, and steps
        as this device can."""
        self.lr_schedulers().base_lrs = [group["lr"] for group in self.parameter_groups()]
        optimizer = self.trainer.optimizers[0]
        for group in optimizer.param_groups:
            group["fused"] = self.fused
        for parameter, state in optimizer.state.items() if self.fused else ():
            state["step"] = state["step"].to(parameter.device)  # where one kernel wants it

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains, with the highest learning rates."""
        return [{"params": list(self.parameters()), "lr": self.config.lr}]

    def lr_factor(self, step: int, total: int) -> float:
        """The share of the highest learning rates at a step of `total`."""
        return cosine(step, total, self.config.lr_warmup)

    @property
    def fused(self) -> bool | None:
        """Whether Adam is one kernel: on a GPU, but where gradients are clipped, which Lightning
        then refuses."""
        clipped = self.trainer.gradient_clip_val
        return True if self.device.type == "cuda" and not clipped else None

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam, with a learning rate that changes at every step."""
        groups = self.parameter_groups()
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=self.fused)
        total = self.trainer.max_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.lr_factor(step, total)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class NoisedStage(Stage):
    """A stage that learns from noised data, with a learned weight w(t) on its loss."""

    def __init__(self, backbone: nn.Module, schema: Schema, config: Any) -> None:
        super().__init__(backbone, config)
        self.weight = LearnedWeight()
        self.schema = schema
        self.flow = TrigFlow(SIGMA_DATA)
        self.proposal = LogNormalProposal(config.P_mean, config.P_std, SIGMA_DATA)

    def noised(
        self, x0: Tensor, proposal: LogNormalProposal | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`(x_t, velocity, t)` for a batch of data, times drawn from the (stage's) proposal."""
        times = (proposal or self.proposal).sample
        t = distributed.shared(lambda n: times(n, x0.device), len(x0))
        noise = distributed.randn_like(x0) * SIGMA_DATA
        return self.flow.interpolate(x0, noise, t), self.flow.velocity(x0, noise, t), t


def cosine(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to 0 at the last step; without a last step it stays at 1."""
    warm = min(1.0, (step + 1) / max(1, warmup))
    progress = min(1.0, step / total) if total > 0 else 0.0
    return warm * (1 + math.cos(math.pi * progress)) / 2
