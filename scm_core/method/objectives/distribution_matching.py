"""Distribution matching distillation, which is rCM's score regulariser (arXiv 2510.08431).

The consistency loss pulls the student to the mean of what it is unsure of, which blurs. The
difference between the scores of what the student draws and of what the teacher would draw says in
which direction each sample is more likely under the teacher (Yin et al. 2023, arXiv 2311.18828).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.method.objectives.base import (
    Batch,
    Condition,
    Objective,
    Student,
    repeat,
    require,
    require_proposal,
    rms,
    trainable_copy,
)
from scm_core.method.objectives.diffusion import diffusion_loss
from scm_core.method.objectives.endpoint import clipped
from scm_core.method.samplers import consistency
from scm_core.method.trigflow import expand_time
from scm_core.method.weighting import LearnedWeight, per_sample


def score_loss(x0: Tensor, fake: Tensor, teacher: Tensor) -> Tensor:
    """`1 / (2 D) |x0 - sg[x0 - (D_fake - D_teacher) / mean|x0 - D_teacher|]|^2` per sample, (B,).

    `x0` are samples of the student with their graph; `fake` and `teacher` are what the two models
    make of them when noised and denoised. The graph reaches `x0` alone.
    """
    still, fake, teacher = x0.detach(), fake.detach(), teacher.detach()
    scale = (still - teacher).abs().flatten(1).mean(1)
    step = (fake - teacher) / expand_time(scale, x0).clamp_min(1e-4)
    return per_sample(x0 - (still - step)) / 2


class DistributionMatching(Objective):
    """Moves what the student samples to where the teacher finds it likelier than the fake score.

    The fake score is a third network, which starts as the teacher and follows what the student
    samples. It and the student aim at each other: momentum would make them circle, and Adam has
    none in a phase with this objective.
    """

    @dataclass
    class Options:
        """`lr` is the highest learning rate of the fake score, which learns from each sample at
        `draws` times; `rollouts` are the numbers of steps that samples are made in, one of them a
        training step; `P_mean`, `P_std` shape the proposal."""

        lr: float = 4e-4
        draws: int = 2
        rollouts: list[int] = field(default_factory=lambda: [1, 2, 4])
        P_mean: float = -0.4
        P_std: float = 1.6

        def __post_init__(self) -> None:
            require(0 < self.lr < float("inf"), "lr", self.lr, "a number above 0")
            require(self.draws >= 1, "draws", self.draws, "at least 1")
            fits = bool(self.rollouts) and min(self.rollouts) >= 1
            require(fits, "rollouts", list(self.rollouts), "numbers of steps, at least 1")
            require_proposal(self)

    monitors = "score gap"
    cost = 11.7
    needs_teacher = True
    betas = (0.0, 0.99)

    def __init__(self, options: Any = None, teacher: nn.Module | None = None) -> None:
        super().__init__(options)
        self.fake = trainable_copy(teacher)
        self.weight = LearnedWeight()

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "lr": self.options.lr}]

    def networks(self) -> list[nn.Module]:
        return [self.fake]

    def loss(self, student: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x0, sigma_data = self.sample(student, batch), student.sigma_data
        x_t, _, t = student.noised(x0.detach(), self.options.P_mean, self.options.P_std)
        with torch.no_grad():
            teacher, fake = (
                student.path.to_data(x_t, model(x_t / sigma_data, t, batch.condition), t)
                for model in (student.teacher, self.fake)
            )
        loss = score_loss(x0, fake, teacher)
        followed = self.fake_loss(student, x0.detach(), batch.condition)
        return loss + followed, {"score gap": rms(fake - teacher, sigma_data), "t": t}

    def sample(self, student: Student, batch: Batch) -> Tensor:
        """Samples of the student, with the graph of one of its steps, any of them."""
        sigma_data, condition = student.sigma_data, batch.condition
        times = student.times(random.choice(self.options.rollouts))
        before = random.randrange(len(times))
        x = student.noise(batch.x)
        t = times[before].to(x.dtype) * x.new_ones(len(x))
        if before:
            given = student.backbone, x, times[:before], sigma_data, condition
            x0 = consistency(*given, fresh=lambda like: student.noise(like) / sigma_data)
            x = student.path.interpolate(x0, student.noise(x0), t)
        F = student.backbone(x / sigma_data, t, condition)
        return clipped(student.path.to_data(x, F, t), student.bounds)

    def fake_loss(self, student: Student, x0: Tensor, condition: Condition) -> Tensor:
        """The diffusion loss (B,) that teaches the fake score what the student samples."""
        draws = self.options.draws
        proposal = self.options.P_mean, self.options.P_std
        x_t, velocity, t = student.noised(repeat(x0, draws), *proposal)
        given = {key: repeat(value, draws) for key, value in condition.items()}
        F = self.fake(x_t / student.sigma_data, t, given)
        loss = diffusion_loss(F, velocity, self.weight(t), student.sigma_data)
        return loss.view(draws, -1).mean(0)
