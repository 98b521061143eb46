"""Consistency mid-training: before sCM, learn where a solver's trajectories end (CMT).

Regressing the end point is supervised learning: nothing is bootstrapped, so a student gets near the
teacher's flow map in a fraction of the steps that the consistency loss needs from a cold start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scm_core.losses.weighting import learned, per_sample
from scm_core.trigflow import expand_time


def jittered_times(times: Tensor, u: float) -> Tensor:
    """A solver's falling grid, its inner times the share `u` of a step after the one before.

    The ends stay; draws of `u` from (0, 1] cover what lies between the times. A small u makes a
    tiny first step, over which a multistep solver would amplify rounding.
    """
    inner = torch.lerp(times[:-2], times[1:-1], u)
    return torch.cat([times[:1], inner, times[-1:]])


def endpoint_loss(
    F: Tensor, x_t: Tensor, x0: Tensor, t: Tensor, weight: Tensor, sigma_data: float
) -> Tensor:
    """`e^w / D |F - (cos(t) x_t - x0) / (sigma_data sin(t))|^2 - w` per sample, (B,).

    The target is the F whose consistency function takes x_t to `x0`, where its trajectory ends.
    """
    t = expand_time(t, x_t)
    target = (t.cos() * x_t - x0) / (sigma_data * t.sin())
    return learned(per_sample(F - target), weight)
