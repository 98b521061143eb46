"""The TrigFlow diffusion loss (arXiv 2410.11081, section 3), by which teachers learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scm_core.method.objectives.base import Batch, Objective, Student, require, require_proposal
from scm_core.method.weighting import LearnedWeight, learned, per_sample


def diffusion_loss(F: Tensor, velocity: Tensor, weight: Tensor, sigma_data: float) -> Tensor:
    """`e^w / D |sigma_data F - v_t|^2 - w` per sample, (B,) (arXiv 2410.11081, equation 5).

    F and the velocity are (B, C, *grid), the learned log-weight w(t) is (B,).
    """
    return learned(per_sample(sigma_data * F - velocity), weight)


class Diffusion(Objective):
    """Learns the velocity, with the condition dropped at random so that it can be guided."""

    @dataclass
    class Options:
        """`condition_dropout` is a share of the samples; `P_mean`, `P_std` shape the proposal."""

        condition_dropout: float = 0.1
        P_mean: float = -0.8
        P_std: float = 1.6

        def __post_init__(self) -> None:
            require_proposal(self)
            share = self.condition_dropout
            require(0 <= share <= 1, "condition_dropout", share, "between 0 and 1")

    cost = 3

    def __init__(self, options: Any = None, teacher: nn.Module | None = None) -> None:
        super().__init__(options)
        self.weight = LearnedWeight()

    def loss(self, student: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x_t, velocity, t = student.noised(batch.x, self.options.P_mean, self.options.P_std)
        condition = student.dropped(batch.condition, self.options.condition_dropout)
        F = student.backbone(x_t / student.sigma_data, t, condition)
        loss = diffusion_loss(F, velocity, self.weight(t), student.sigma_data)
        error = per_sample(student.sigma_data * F.detach() - velocity) / student.sigma_data**2
        return loss, {"error": error, "t": t}
