"""The second stage: a consistency model (arXiv 2410.11081, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scm_core import dual
from scm_core.conditioning import Schema
from scm_core.guidance import Guided
from scm_core.losses.consistency import (
    consistency_loss,
    normalise,
    student_tangent,
    warmup_ratio,
)
from scm_core.losses.midtraining import endpoint_loss, jittered_times
from scm_core.modality import SIGMA_DATA, Batch
from scm_core.samplers import dpm_solver_path, ode_times
from scm_core.stages.stage import Stage


class Student(Stage):
    """Learns where the probability-flow ODE ends.

    With a `teacher` the ODE is the teacher's, guided (sCD); without, it is estimated from the data
    (sCT). Its first steps may be mid-training. The teacher is frozen and stays out of checkpoints.
    """

    def __init__(
        self, backbone: nn.Module, schema: Schema, config: Any, teacher: nn.Module | None
    ) -> None:
        super().__init__(backbone, schema, config)
        # In a list the teacher is no submodule: it is neither trained, nor saved, nor wrapped.
        self.teacher = [teacher.eval().requires_grad_(False)] if teacher else []

    @property
    def watched_name(self) -> str:
        return "error" if self.global_step < self.config.midtraining else "|g|"

    def networks(self) -> list[nn.Module]:
        return [self.backbone, *self.teacher]

    def on_fit_start(self) -> None:
        self.teacher = [teacher.to(self.device) for teacher in self.teacher]

    def training_step(self, batch: Batch, _: int) -> Tensor:
        step = self.global_step - self.config.midtraining
        if step < 0:
            return self.midtraining_step(batch)
        x_t, velocity, t = self.noised(batch.x)
        dxdt = self.teacher_velocity(x_t, t, batch.condition) if self.teacher else velocity
        warmup = warmup_ratio(step, self.config.tangent_warmup)
        F, g = student_tangent(
            dual.jvp, self.backbone, x_t, dxdt, t, SIGMA_DATA, warmup, condition=batch.condition
        )
        loss = consistency_loss(F, normalise(g, self.config.c, self.config.norm), self.weight(t))
        self.watch(loss, t, g.flatten(1).square().mean(1).sqrt() / SIGMA_DATA)
        return loss.mean()

    def midtraining_step(self, batch: Batch) -> Tensor:
        """Regress every point of a few fresh trajectories of the teacher to where they end."""
        steps = self.config.solver_steps
        n = max(1, len(batch.x) // steps)
        condition = {key: value[:n] for key, value in batch.condition.items()}
        u = torch.empty(()).uniform_(0.25, 1).item()
        times = jittered_times(ode_times(steps, SIGMA_DATA), u)
        noise = SIGMA_DATA * torch.randn_like(batch.x[:n])
        *points, x0 = dpm_solver_path(self.guided, noise, times, SIGMA_DATA, condition)
        x_t, x0 = torch.cat(points), x0.repeat(steps, *[1] * (x0.ndim - 1))
        t = times[:-1].to(x_t).repeat_interleave(n)
        given = {k: v.repeat(steps, *[1] * (v.ndim - 1)) for k, v in condition.items()}
        F = self.backbone(x_t / SIGMA_DATA, t, given)
        loss = endpoint_loss(F, x_t, x0, t, self.weight(t), SIGMA_DATA)
        error = self.flow.to_data(x_t, F.detach(), t) - x0
        self.watch(loss, t, error.flatten(1).square().mean(1).sqrt() / SIGMA_DATA)
        return loss.mean()

    @torch.no_grad()
    def teacher_velocity(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """`dx/dt = sd F_teacher`; guidance is folded in here and nowhere else."""
        return SIGMA_DATA * self.guided(x_t / SIGMA_DATA, t, condition).to(x_t.dtype)

    @property
    def guided(self) -> Guided:
        return Guided(self.teacher[0], self.config.guidance, self.schema)
