"""Endpoint regression, or mid-training: before sCM, learn where a solver's trajectories end (CMT).

Regressing the end point is supervised learning: nothing is bootstrapped, so a student gets near the
teacher's flow map in a fraction of the steps that the consistency loss needs from a cold start.
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
    repeat,
    require,
    require_choice,
    rms,
)
from scm_core.method.samplers import PATHS, ode_times
from scm_core.method.trigflow import Bounds, expand_time
from scm_core.method.weighting import LearnedWeight, learned

SMOOTH = 0.01  # errors of F below this count by their square, above it by their size


def jittered_times(times: Tensor, u: float) -> Tensor:
    """A solver's falling grid, its inner times the share `u` of a step after the one before.

    The ends stay; draws of `u` from (0, 1] cover what lies between the times. A small u makes a
    tiny first step, over which a multistep solver would amplify rounding.
    """
    inner = torch.lerp(times[:-2], times[1:-1], u)
    return torch.cat([times[:1], inner, times[-1:]])


def clipped(x: Tensor, bounds: Bounds | None) -> Tensor:
    """x, no lower and no higher than the two `bounds`, which broadcast to it; or x itself."""
    return x if bounds is None else x.clamp(*(bound.to(x) for bound in bounds))


def endpoint_loss(
    F: Tensor,
    x_t: Tensor,
    x0: Tensor,
    t: Tensor,
    weight: Tensor,
    sigma_data: float,
    bounds: Bounds | None = None,
) -> Tensor:
    """`e^w mean(sqrt(e^2 + c^2) - c) - w` per sample, (B,), with c = `SMOOTH` and the error e of F.

    `e = F - (cos(t) x_t - x0) / (sigma_data sin(t))`: the target is the F whose consistency
    function takes x_t to `x0`, where its trajectory ends. A pseudo-Huber loss of every element (as
    of every sample in arXiv 2310.14189) aims at the median where the square aims at the mean, which
    is blurred, and does not tire of the small errors left in flat parts. Both ends are clipped to
    the `bounds` that decoding clips to: to miss beyond them is no error.
    """
    t = expand_time(t, x_t)
    reached = clipped(t.cos() * x_t - t.sin() * sigma_data * F, bounds)
    error = (clipped(x0, bounds) - reached) / (sigma_data * t.sin())
    loss = (error.square() + SMOOTH**2).sqrt() - SMOOTH
    return learned(loss.flatten(1).mean(1), weight)


class Endpoint(Objective):
    """Regresses points of fresh trajectories of the teacher to where they end."""

    @dataclass
    class Options:
        """Trajectories are solved by `solver` in `solver_steps` steps; a batch of B samples makes
        `B / points` of them, and takes `points` of each."""

        solver: str = "dpm"
        solver_steps: int = 12
        points: int = 4

        def __post_init__(self) -> None:
            require_choice("solver", self.solver, list(PATHS))
            require(self.solver_steps >= 1, "solver_steps", self.solver_steps, "at least 1")
            require(self.points >= 1, "points", self.points, "at least 1")

    cost = 6
    needs_teacher = True

    def __init__(self, options: Any = None, teacher: nn.Module | None = None) -> None:
        super().__init__(options)
        self.weight = LearnedWeight()

    def loss(self, student: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        steps, sigma_data = self.options.solver_steps, student.sigma_data
        chosen = torch.randperm(steps)[: self.options.points]
        n = max(1, len(batch.x) // len(chosen))
        condition = {key: value[:n] for key, value in batch.condition.items()}
        u = torch.empty(()).uniform_(0.25, 1).item()
        times = jittered_times(ode_times(steps, sigma_data), u)
        solve, noise = PATHS[self.options.solver], student.noise(batch.x[:n])
        path = solve(student.teacher, noise, times, sigma_data, condition)
        x_t = torch.cat([path[i] for i in chosen])
        x0 = repeat(path[-1], len(chosen))
        t = times[chosen].to(x_t).repeat_interleave(n)
        given = {key: repeat(value, len(chosen)) for key, value in condition.items()}
        F = student.backbone(x_t / sigma_data, t, given)
        loss = endpoint_loss(F, x_t, x0, t, self.weight(t), sigma_data, student.bounds)
        error = rms(student.path.to_data(x_t, F.detach(), t) - x0, sigma_data)
        return loss, {"error": error, "t": t}
