"""Consistency mid-training: before sCM, learn where a solver's trajectories end (CMT).

Regressing the end point is supervised learning: nothing is bootstrapped, so a student gets near the
teacher's flow map in a fraction of the steps that the consistency loss needs from a cold start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scm_core.method.losses.weighting import learned
from scm_core.method.trigflow import Bounds, expand_time

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
