"""The continuous-time consistency loss, sCM (arXiv 2410.11081, algorithm 1).

Distilled from a teacher it is sCD, learned from data alone sCT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.method.objectives.base import (
    Batch,
    Objective,
    Student,
    require,
    require_choice,
    require_proposal,
    rms,
)
from scm_core.method.tangent import NORMS, normalise, student_tangent, warmup_ratio, within
from scm_core.method.weighting import LearnedWeight, learned, per_sample


def consistency_loss(F: Tensor, g: Tensor, weight: Tensor) -> Tensor:
    """`e^w / D |F - sg(F) - g|^2 - w` per sample, (B,); `g` is normalised, w(t) learned.

    Its value says nothing about convergence (F - sg(F) is 0): watch |g| before normalisation.
    """
    return learned(per_sample(F - F.detach() - g), weight)


@torch.no_grad()
def ode_velocity(
    student: Student, batch: Batch, x_t: Tensor, velocity: Tensor, t: Tensor
) -> Tensor:
    """dx/dt of the probability-flow ODE: the teacher's `sd F`, or without one the velocity v_t.

    Guidance is in the teacher, and nowhere else.
    """
    if student.teacher is None:
        return velocity
    F = student.teacher(x_t / student.sigma_data, t, batch.condition)
    return student.sigma_data * F.to(x_t.dtype)


class Consistency(Objective):
    """Learns where the ODE ends, by the derivative of its consistency function along it."""

    @dataclass
    class Options:
        """`tangent_warmup` is H, the steps from the phase's start over which the unstable half of
        the tangent comes in; `norm` and `c` normalise it, or `clamp` it to +-c; `P_mean`, `P_std`
        shape the proposal."""

        tangent_warmup: int = 10_000
        norm: str = "l2"
        c: float = 0.1
        P_mean: float = -1.0
        P_std: float = 1.4

        def __post_init__(self) -> None:
            require_choice("norm", self.norm, list(NORMS))
            require(self.tangent_warmup >= 0, "tangent_warmup", self.tangent_warmup, "at least 0")
            require(0 < self.c < float("inf"), "c", self.c, "a number above 0")
            require_proposal(self)

    monitors = "|g|"
    cost = 5
    # Steps along g carry what is right from low times to high ones, as advection does: they descend
    # no loss. The eigenvalues of such a map are imaginary, and a momentum b makes what grows in
    # them grow (1 + b) / (1 - b) times as fast, 19 times for 0.9.
    betas = (0.0, 0.99)

    def __init__(self, options: Any = None, teacher: nn.Module | None = None) -> None:
        super().__init__(options)
        self.weight = LearnedWeight()

    def loss(self, student: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        options, sigma_data = self.options, student.sigma_data
        x_t, velocity, t = student.noised(batch.x, options.P_mean, options.P_std)
        dxdt = ode_velocity(student, batch, x_t, velocity, t)
        warmup = warmup_ratio(student.step, options.tangent_warmup)
        given = student.backbone, x_t, dxdt, t, sigma_data, warmup
        F, g = student_tangent(student.jvp, *given, condition=batch.condition)
        g = within(g, student.path.to_data(x_t, F.detach(), t), student.bounds)
        loss = consistency_loss(F, normalise(g, options.c, options.norm), self.weight(t))
        return loss, {"|g|": rms(g, sigma_data), "t": t}
