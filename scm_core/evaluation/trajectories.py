"""Whether a student is a consistency function: what it says along the teacher's own trajectories.

A consistency function gives the same x_0 at every point of a trajectory (arXiv 2410.11081,
section 2), which is where the teacher's solver ends. A generator that only matches the data's
distribution may be as good and need not.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from scm_core.base import distributed
from scm_core.contract.fields import Condition, null_condition
from scm_core.engine import sampling
from scm_core.engine.checkpoint import Checkpoint
from scm_core.evaluation.evaluator import Advance, Row
from scm_core.method import samplers
from scm_core.method.guidance import Guided
from scm_core.method.trigflow import TrigFlow

SOLVER_STEPS = 24  # of DPM-Solver++
EVERY = 3  # points of a trajectory from one to the next at which the student is asked
SAMPLING = (1, 2, 4)  # steps of the samples whose distance to the end points is measured


@torch.no_grad()
def followed(
    student: Checkpoint,
    teacher: Checkpoint,
    condition: Condition,
    n: int,
    seed: int,
    batch_size: int,
    advance: Advance,
) -> Row:
    """How far the student is from the ends x_0 of ``n`` trajectories of the guided teacher.

    They start from the noise and conditions of an evaluation's samples. Distances are in units of
    the data's standard deviation, over samples and elements: ``along`` holds rms and mean
    |f(x_t, t) - x_0| at each t, ``mean_rms`` and ``mean_abs`` are their means over these t;
    ``end_points`` is the rms between samples and x_0 by the number of steps.
    The second step of two starts from fresh noise, that of a perfect consistency function too: its
    own rms is ``two_step_end_point_floor``, and ``two_step_to_perfect`` the rms between its samples
    and the student's, by the same noise in both steps.
    """
    guidance = student.config.student.guidance
    parts = []
    for part in distributed.round_robin(sampling.batches(n, batch_size)):
        places = torch.arange(part.start, part.stop)
        there = {k: v[places % len(v)].to(student.device) for k, v in condition.items()}
        noise = sampling.seeded_noise(
            student.shape, len(places), seed, student.sigma_data, first=part.start
        ).to(student.device)
        errors = _errors(student, teacher, guidance, noise, there, (seed, part.start))
        parts.append(torch.stack([_moments(error / student.sigma_data) for error in errors]))
        advance(len(places))
    gathered = distributed.interleaved(parts)
    sizes = [len(range(n)[part]) for part in sampling.batches(n, batch_size)]
    moments = sum(size * each for size, each in zip(sizes, gathered, strict=True)) / n
    rms, mean_abs = moments[:, 0].sqrt().tolist(), moments[:, 1].tolist()
    times = _times(student)[:-1][::EVERY].tolist()
    along = [
        {"t": t, "rms": a, "mean_abs": b} for t, a, b in zip(times, rms, mean_abs, strict=False)
    ]
    return {
        "n": n,
        "solver": f"dpm {SOLVER_STEPS} steps, guidance {guidance:g}",
        "along": along,
        "mean_rms": sum(one["rms"] for one in along) / len(along),
        "mean_abs": sum(one["mean_abs"] for one in along) / len(along),
        "end_points": dict(zip(map(str, SAMPLING), rms[len(along) :], strict=False)),
        "two_step_end_point_floor": rms[-2],
        "two_step_to_perfect": rms[-1],
    }


def _errors(
    student: Checkpoint,
    teacher: Checkpoint,
    guidance: float,
    noise: Tensor,
    condition: Condition,
    key: tuple[int, int],
) -> list[Tensor]:
    """f(x_t, t) - x_0 by t, samples - x_0 by steps, perfect samples of two steps - x_0, and samples
    of two steps - perfect ones, (B, C, *grid) each. ``key`` is that of the samples' fresh noise.
    """
    sigma_data, times = student.sigma_data, _times(student)
    guided = Guided(teacher.model, guidance, partial(null_condition, teacher.condition))
    *path, end = samplers.dpm_solver(guided, noise, times, sigma_data, condition)

    def error(x: Tensor, times: Tensor) -> Tensor:
        fresh = sampling.fresh_noise(*key)
        found = samplers.consistency(student.model, x, times, sigma_data, condition, fresh=fresh)
        return found - end

    points = list(zip(path, times[:-1].split(1), strict=True))[::EVERY]
    errors = [error(x, t) for x, t in points]
    asked = {n: samplers.consistency_times(n, sigma_data, student.ends) for n in SAMPLING}
    sampled = {n: error(noise, at) for n, at in asked.items()}
    again = asked[2][1]
    fresh = sigma_data * sampling.fresh_noise(*key)(end)
    x = TrigFlow(sigma_data).interpolate(end, fresh, again.to(end.dtype))
    sigma_max = sigma_data * math.tan(again)
    rest = samplers.ode_times(SOLVER_STEPS, sigma_data, sigma_max=sigma_max)
    perfect = samplers.dpm_solver(guided, x, rest, sigma_data, condition)[-1] - end
    return [*errors, *sampled.values(), perfect, sampled[2] - perfect]


def _times(model: Checkpoint) -> Tensor:
    return samplers.ode_times(SOLVER_STEPS, model.sigma_data)


def _moments(error: Tensor) -> Tensor:
    """Mean square and mean magnitude, float64 (2,), on the CPU."""
    error = error.double()
    return torch.stack([error.square().mean(), error.abs().mean()]).cpu()
