"""Discrete-time consistency, ECT (Geng et al. 2024, "Consistency models made easy", 2406.14548).

The student's endpoint at t shall be that at an earlier time r on the same trajectory. The step
between the two shrinks over the phase: from denoising (r = 0) towards the continuous-time loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scm_core.method.objectives.base import (
    Batch,
    Objective,
    Student,
    require,
    require_choice,
    require_proposal,
    rms,
)
from scm_core.method.objectives.consistency import ode_velocity
from scm_core.method.objectives.endpoint import clipped
from scm_core.method.weighting import per_sample

K, B = 8.0, 1.0  # of n(sigma) = 1 + K sigmoid(-B sigma): steps at low noise are longer


def earlier_time(t: Tensor, stage: float, q: float, sigma_data: float) -> tuple[Tensor, Tensor]:
    """r (B,) with `sigma_r = sigma_t max(0, 1 - n(sigma_t) / q^stage)`, `sigma = sigma_data tan t`.

    The paper's mapping p(r | t), whose times are EDM's noise levels. Also `tan t - tan r` (B,),
    above 0 however short the step is: the difference of t and a rounded r would not be.
    """
    tan = t.tan()
    share = ((1 + K * torch.sigmoid(-B * sigma_data * tan)) / q**stage).clamp_max(1)
    return ((1 - share) * tan).atan(), share * tan


def discrete_loss(error: Tensor, step: Tensor, c: float) -> Tensor:
    """`(sqrt(|e|^2 / D + c^2) - c) / step` per sample, (B,); with c = 0 `|e|^2 / D / step`.

    `error` is `f(x_t, t) - sg f(x_r, r)` in units of the data and `step` that of the noise level,
    `tan t - tan r`: by TrigFlow's own times, of which those of much noise hardly differ, these
    would have nearly all of the weight.
    """
    square = per_sample(error)
    return (((square + c**2).sqrt() - c) if c else square) / step


class DiscreteConsistency(Objective):
    """Follows the teacher's ODE, or without one the data's own noise, from t to r in one step.

    On TrigFlow's circle both are a rotation of x_t along dx/dt.
    """

    @dataclass
    class Options:
        """The step shrinks by `q` in each of `stages` equal parts of the phase; `metric` is
        `huber` with the constant `c`, or `squared`; `P_mean`, `P_std` shape the proposal."""

        q: float = 2.0
        stages: int = 8
        metric: str = "huber"
        c: float = 1e-3
        P_mean: float = -1.1
        P_std: float = 2.0

        def __post_init__(self) -> None:
            require(1 < self.q < math.inf, "q", self.q, "a number above 1")
            require(self.stages >= 1, "stages", self.stages, "at least 1")
            require_choice("metric", self.metric, ["huber", "squared"])
            require(0 < self.c < math.inf, "c", self.c, "a number above 0")
            require_proposal(self)

    monitors = "jump"
    cost = 5

    def loss(self, student: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        options, path, sigma_data = self.options, student.path, student.sigma_data
        x_t, velocity, t = student.noised(batch.x, options.P_mean, options.P_std)
        stage = 1 + options.stages * student.step // max(1, student.steps)
        r, step = earlier_time(t, stage, options.q, sigma_data)
        alike = torch.random.fork_rng([t.device] if t.is_cuda else [])  # dropout, at both ends
        with torch.no_grad(), alike:
            dxdt = ode_velocity(student, batch, x_t, velocity, t)
            x_r = path.step(x_t, dxdt / sigma_data, t, r)
            nearer = path.to_data(x_r, student.backbone(x_r / sigma_data, r, batch.condition), r)
        farther = path.to_data(x_t, student.backbone(x_t / sigma_data, t, batch.condition), t)
        farther, nearer = (clipped(x, student.bounds) for x in (farther, nearer))
        error = (farther - nearer) / sigma_data
        c = options.c if options.metric == "huber" else 0.0
        angle = (step * t.cos() * r.cos()).clamp_max(1).asin()  # t - r
        return discrete_loss(error, step, c), {"jump": rms(error, 1.0) / angle, "t": t}
