"""The flow-matching anchor of FACM (Peng et al. 2025, arXiv 2507.03738).

A student that learns shortcuts alone forgets the velocity field that defines them. The anchor keeps
it in the same network, beside a consistency loss, in an expanded interval of times: there shortcuts
are at t, velocities at -t (the paper's t and 2 - t, with data at 1), and both meet in the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scm_core.method.objectives.base import Batch, Objective, Student, require_proposal, rms
from scm_core.method.objectives.consistency import ode_velocity
from scm_core.method.objectives.diffusion import diffusion_loss
from scm_core.method.weighting import LearnedWeight


class FlowAnchor(Objective):
    """The diffusion loss at times -t, towards the teacher's velocity, or without one the data's."""

    @dataclass
    class Options:
        """`P_mean`, `P_std` shape the proposal."""

        P_mean: float = -0.8
        P_std: float = 1.6

        def __post_init__(self) -> None:
            require_proposal(self)

    monitors = "velocity error"
    cost = 4
    negative_times = True

    def __init__(self, options: Any = None, teacher: nn.Module | None = None) -> None:
        super().__init__(options)
        self.weight = LearnedWeight()

    def loss(self, student: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        sigma_data = student.sigma_data
        x_t, velocity, t = student.noised(batch.x, self.options.P_mean, self.options.P_std)
        dxdt = ode_velocity(student, batch, x_t, velocity, t)
        F = student.backbone(x_t / sigma_data, -t, batch.condition)
        loss = diffusion_loss(F, dxdt, self.weight(t), sigma_data)
        return loss, {"velocity error": rms(sigma_data * F - dxdt, sigma_data), "t": t}
