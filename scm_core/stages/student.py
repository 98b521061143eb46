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
from scm_core.modality import SIGMA_DATA, Batch
from scm_core.stages.stage import Stage


class Student(Stage):
    """Learns where the probability-flow ODE ends.

    With a `teacher` the ODE is the teacher's, guided (sCD); without, it is estimated from the data
    (sCT). The teacher is frozen and stays out of checkpoints.
    """

    watched_name = "|g|"

    def __init__(
        self, backbone: nn.Module, schema: Schema, config: Any, teacher: nn.Module | None
    ) -> None:
        super().__init__(backbone, schema, config)
        # In a list the teacher is no submodule: it is neither trained, nor saved, nor wrapped.
        self.teacher = [teacher.eval().requires_grad_(False)] if teacher else []

    def networks(self) -> list[nn.Module]:
        return [self.backbone, *self.teacher]

    def on_fit_start(self) -> None:
        self.teacher = [teacher.to(self.device) for teacher in self.teacher]

    def training_step(self, batch: Batch, _: int) -> Tensor:
        x_t, velocity, t = self.noised(batch.x)
        dxdt = self.teacher_velocity(x_t, t, batch.condition) if self.teacher else velocity
        warmup = warmup_ratio(self.global_step, self.config.tangent_warmup)
        F, g = student_tangent(
            dual.jvp, self.backbone, x_t, dxdt, t, SIGMA_DATA, warmup, condition=batch.condition
        )
        loss = consistency_loss(F, normalise(g, self.config.c, self.config.norm), self.weight(t))
        self.watch(loss, t, g.flatten(1).square().mean(1).sqrt() / SIGMA_DATA)
        return loss.mean()

    @torch.no_grad()
    def teacher_velocity(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """`dx/dt = sd F_teacher`; guidance is folded in here and nowhere else."""
        guided = Guided(self.teacher[0], self.config.guidance, self.schema)
        return SIGMA_DATA * guided(x_t / SIGMA_DATA, t, condition).to(x_t.dtype)
