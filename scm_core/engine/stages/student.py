"""The second stage: a consistency model (arXiv 2410.11081, algorithm 1)."""

from __future__ import annotations

import copy
import random
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scm_core import dual
from scm_core.base import distributed
from scm_core.contract.fields import Condition, Schema, null_condition
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.engine import sharding
from scm_core.engine.replay import Replayed
from scm_core.engine.stages.stage import NoisedStage, cosine
from scm_core.method.guidance import Guided
from scm_core.method.losses.consistency import (
    consistency_loss,
    normalise,
    student_tangent,
    warmup_ratio,
    within,
)
from scm_core.method.losses.diffusion import diffusion_loss
from scm_core.method.losses.midtraining import clipped, endpoint_loss, jittered_times
from scm_core.method.losses.score import score_loss
from scm_core.method.losses.weighting import per_sample
from scm_core.method.proposal import LogNormalProposal
from scm_core.method.samplers import PATHS, consistency, consistency_times, ode_times
from scm_core.method.trigflow import Bounds
from scm_core.networks.layers import LearnedWeight

TANGENTS = {"dual": dual.jvp, "difference": dual.difference}


class Student(NoisedStage):
    """Learns where the probability-flow ODE ends.

    With a `teacher` the ODE is the teacher's, guided (sCD); without, it is estimated from the data
    (sCT). Its first steps may be mid-training; the score regulariser adds a third network, `fake`,
    which starts as the teacher. The teacher is frozen and stays out of checkpoints. `bounds`, which
    broadcast to a sample, are what decoding clips to: what lies beyond them is as good as they are.
    """

    def __init__(
        self,
        backbone: nn.Module,
        schema: Schema,
        config: Any,
        teacher: nn.Module | None,
        bounds: Bounds | None = None,
    ) -> None:
        super().__init__(backbone, schema, config)
        self.bounds = bounds
        # In a list the teacher is no submodule: it is neither trained, nor saved, nor wrapped.
        self.teacher = [teacher.eval().requires_grad_(False)] if teacher else []
        self.midtraining_weight = LearnedWeight() if config.midtraining.steps else None
        self.fake, self.fake_weight = None, None
        if config.score.weight:
            self.fake = copy.deepcopy(teacher).train().requires_grad_(True)
            self.fake_weight = LearnedWeight()
        score = config.score
        self.score_proposal = LogNormalProposal(score.P_mean, score.P_std, SIGMA_DATA)

    @property
    def phase_step(self) -> int:
        """Steps since mid-training ended; negative while it lasts."""
        return self.global_step - self.config.midtraining.steps

    @property
    def watched_name(self) -> str:
        if self.phase_step < 0:
            return "error"
        return "|g|" if self.config.consistency else "score gap"

    def networks(self) -> list[nn.Module]:
        return [self.backbone, *self.teacher, *([self.fake] if self.fake else [])]

    def on_fit_start(self) -> None:
        self.teacher = [teacher.to(self.device) for teacher in self.teacher]
        if self.teacher:  # shards are gathered anew at every evaluation
            teacher = self.teacher[0]
            self.replayed = teacher if self.sharded else Replayed(teacher, teacher)
        self.bounds = self.bounds and tuple(bound.to(self.device) for bound in self.bounds)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        if self.phase_step < 0:
            idle = [self.weight, self.fake, self.fake_weight]
            return self.midtraining_step(batch) + nothing(idle)
        if self.phase_step == 0:
            self.forget_watched()
        unweighted = None if self.config.consistency else self.weight
        loss = nothing([self.midtraining_weight, unweighted])
        if self.fake:
            loss = loss + self.score_step(batch)
        if self.config.consistency:
            loss = loss + self.config.consistency * self.consistency_step(batch)
        return loss

    def consistency_step(self, batch: Batch) -> Tensor:
        """The consistency loss on noised data."""
        x_t, velocity, t = self.noised(batch.x)
        dxdt = self.teacher_velocity(x_t, t, batch.condition) if self.teacher else velocity
        warmup = warmup_ratio(self.phase_step, self.config.tangent_warmup)
        given = (self.backbone, x_t, dxdt, t, SIGMA_DATA, warmup)
        jvp = TANGENTS[self.config.tangent]
        F, g = student_tangent(jvp, *given, condition=batch.condition)
        g = within(g, self.flow.to_data(x_t, F.detach(), t), self.bounds)
        loss = consistency_loss(F, normalise(g, self.config.c, self.config.norm), self.weight(t))
        self.watch(loss, t, rms(g))
        return loss.mean()

    def score_step(self, batch: Batch) -> Tensor:
        """The score regulariser on samples drawn now, and the fake score's own loss on them."""
        x0 = self.draw(batch)
        x_t, _, t = self.noised(x0.detach(), self.score_proposal)
        with torch.no_grad():
            teacher = self.flow.to_data(x_t, self.guided(x_t / SIGMA_DATA, t, batch.condition), t)
            fake = self.flow.to_data(x_t, self.fake(x_t / SIGMA_DATA, t, batch.condition), t)
        loss = score_loss(x0, fake, teacher)
        if not self.config.consistency:  # else |g| is watched
            self.watch(loss, t, rms(fake - teacher))
        followed = self.fake_loss(x0.detach(), batch.condition)
        return self.config.score.weight * loss.mean() + followed

    def draw(self, batch: Batch) -> Tensor:
        """Samples as the student draws them, with the graph of one of its steps, any of them."""
        times = consistency_times(random.choice(self.config.score.rollouts), SIGMA_DATA)
        before = random.randrange(len(times))
        x = SIGMA_DATA * distributed.randn_like(batch.x)
        t = times[before].to(x.dtype) * x.new_ones(len(x))
        if before:
            given = (SIGMA_DATA, batch.condition, distributed.randn_like)
            x0 = consistency(self.backbone, x, times[:before], *given)
            x = self.flow.interpolate(x0, SIGMA_DATA * distributed.randn_like(x0), t)
        F = self.backbone(x / SIGMA_DATA, t, batch.condition)
        return clipped(self.flow.to_data(x, F, t), self.bounds)

    def fake_loss(self, x0: Tensor, condition: Condition) -> Tensor:
        """The diffusion loss that teaches the fake score what the student draws."""
        draws = self.config.score.draws
        x_t, velocity, t = self.noised(repeat(x0, draws), self.score_proposal)
        given = {key: repeat(value, draws) for key, value in condition.items()}
        F = self.fake(x_t / SIGMA_DATA, t, given)
        return diffusion_loss(F, velocity, self.fake_weight(t), SIGMA_DATA).mean()

    def midtraining_step(self, batch: Batch) -> Tensor:
        """Regress points of fresh trajectories of the teacher to where they end."""
        steps = self.config.midtraining.solver_steps
        chosen = torch.randperm(steps)[: self.config.midtraining.points]
        n = max(1, len(batch.x) // len(chosen))
        condition = {key: value[:n] for key, value in batch.condition.items()}
        u = torch.empty(()).uniform_(0.25, 1).item()
        times = jittered_times(ode_times(steps, SIGMA_DATA), u)
        noise = SIGMA_DATA * distributed.randn_like(batch.x[:n])
        solve = PATHS[self.config.midtraining.solver]
        path = solve(self.guided, noise, times, SIGMA_DATA, condition)
        x_t = torch.cat([path[i] for i in chosen])
        x0 = repeat(path[-1], len(chosen))
        t = times[chosen].to(x_t).repeat_interleave(n)
        given = {key: repeat(value, len(chosen)) for key, value in condition.items()}
        F = self.backbone(x_t / SIGMA_DATA, t, given)
        weight = self.midtraining_weight(t)
        loss = endpoint_loss(F, x_t, x0, t, weight, SIGMA_DATA, self.bounds)
        self.watch(loss, t, rms(self.flow.to_data(x_t, F.detach(), t) - x0))
        return loss.mean()

    @torch.no_grad()
    def teacher_velocity(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """`dx/dt = sd F_teacher`; guidance is folded in here and nowhere else."""
        return SIGMA_DATA * self.guided(x_t / SIGMA_DATA, t, condition).to(x_t.dtype)

    @property
    def guided(self) -> Guided:
        return Guided(self.replayed, self.config.guidance, partial(null_condition, self.schema))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The fake score has a learning rate of its own, and neither of the two has momentum.

        Each of them follows the other: momentum would make them circle.
        """
        if not self.fake:
            return super().parameter_groups()
        fake = [*self.fake.parameters(), *self.fake_weight.parameters()]
        known = {id(parameter) for parameter in fake}
        own = [parameter for parameter in self.parameters() if id(parameter) not in known]
        still = {"betas": (0.0, 0.99)}
        return [
            {"params": own, "lr": self.config.lr, **still},
            {"params": fake, "lr": self.config.score.lr, **still},
        ]

    def lr_factor(self, step: int, total: int) -> float:
        """Mid-training has a warm-up and a cosine of its own."""
        first, warmup = self.config.midtraining, self.config.lr_warmup
        if step < first.steps:
            return first.lr / self.config.lr * cosine(step, first.steps, warmup)
        return cosine(step - first.steps, total - first.steps, warmup)


def repeat(x: Tensor, times: int) -> Tensor:
    """The batch, as often as `times`."""
    return x.repeat(times, *[1] * (x.ndim - 1))


def rms(x: Tensor) -> Tensor:
    """Root mean square per sample in units of the data, (B,)."""
    return per_sample(x.detach()).sqrt() / SIGMA_DATA


def nothing(idle: list[nn.Module | None]) -> Tensor | float:
    """0, with a graph to modules that a step leaves out: DDP wants every parameter in it."""
    return sum(
        (0 * sharding.local(p).sum() for module in idle if module for p in module.parameters()), 0.0
    )
