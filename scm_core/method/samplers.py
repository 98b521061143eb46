"""Samplers as pure functions of `model(x_t / sigma_data, t, condition) -> F`.

`noise` is N(0, sigma_data^2) of shape (B, C, *grid) and stands for x at `times[0]`; `times` is a
falling 1-D tensor. Samplers of the ODE return their path: x at each of `times`, the noise first.
Everything follows the dtype of `noise`, float64 included. NFE counts the evaluations of the model a
sample costs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from scm_core.method.trigflow import TrigFlow

Condition = dict[str, Tensor]
Model = Callable[[Tensor, Tensor, Condition | None], Tensor]

# Where the consistency sampler looks last by default: at 1.1, which arXiv 2410.11081 uses for two
# steps on every data set. More steps come before it, from FIRST_TIME on. The best is a student's
# own (docs/results.md, docs/emoji.md).
FIRST_TIME, LAST_TIME = 1.3, 1.1


def consistency_times(
    steps: int, sigma_data: float, ends: tuple[float, float] | None = None
) -> Tensor:
    """The `steps` falling times at which a student is evaluated, float64.

    `ends` are the first and the last of two and more, by default `t_max` and `LAST_TIME`.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, it must be at least 1")
    first, last = ends or (TrigFlow(sigma_data).t_max, LAST_TIME)
    second = FIRST_TIME if last < FIRST_TIME else (first + last) / 2
    middle = torch.linspace(second, last, steps - 1) if steps > 2 else [last]
    times = [first, *map(float, middle)]
    return torch.tensor(times[:steps], dtype=torch.float64)


def ends(network: Any, last: float, sigma_data: float) -> tuple[float, float]:
    """The first and the last of a student's times: `t_max` and `last`, or what its network knows.

    That has a method `ends(last)` where not all times are its own.
    """
    own = network.ends(last) if hasattr(network, "ends") else None
    return own or (TrigFlow(sigma_data).t_max, last)


def ode_times(
    steps: int,
    sigma_data: float,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    """EDM's `steps + 1` falling times from `atan(sigma_max / sigma_data)` to 0, float64.

    Karras et al. 2022, arXiv 2206.00364, equation 5.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}, it must be at least 1")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigma = (high + ramp * (low - high)) ** rho
    return torch.cat([(sigma / sigma_data).atan(), sigma.new_zeros(1)])


def _evaluate(
    model: Model, x: Tensor, t: Tensor, sigma_data: float, condition: Condition | None
) -> Tensor:
    # A network in single precision wants single-precision inputs, float64 stays float64. A time
    # stays where it is, on the CPU: as a number of a kernel it takes no copy that a GPU waits for.
    return model(x / sigma_data, t.to(x.dtype) * x.new_ones(x.shape[0]), condition).to(x.dtype)


@torch.no_grad()
def consistency(
    model: Model,
    noise: Tensor,
    times: Tensor,
    sigma_data: float,
    condition: Condition | None = None,
    *,
    fresh: Callable[[Tensor], Tensor],
) -> Tensor:
    """One or more steps of a consistency model, x0 (B, C, *grid). NFE: `len(times)`.

    Each step denoises to `f(x, t)`; all but the last add fresh noise up to the next time
    (arXiv 2410.11081, section 2): `fresh` of a tensor is N(0, 1) like it. It has no default, for
    processes that share a batch must not share its noise.
    """
    flow = TrigFlow(sigma_data)
    x, x0 = noise, noise
    for i, t in enumerate(torch.as_tensor(times, dtype=torch.float64)):
        if i:
            x = flow.interpolate(x0, sigma_data * fresh(x0), t.to(noise.dtype))
        x0 = flow.to_data(x, _evaluate(model, x, t, sigma_data, condition), t.to(noise.dtype))
    return x0


@torch.no_grad()
def ddim(
    model: Model,
    noise: Tensor,
    times: Tensor,
    sigma_data: float,
    condition: Condition | None = None,
) -> list[Tensor]:
    """The first-order sampler. NFE: `len(times) - 1`."""
    flow = TrigFlow(sigma_data)
    path = [noise]
    for t, s in pairwise(torch.as_tensor(times, dtype=torch.float64)):
        x = path[-1]
        F = _evaluate(model, x, t, sigma_data, condition)
        path.append(flow.step(x, F, t.to(x.dtype), s.to(x.dtype)))
    return path


@torch.no_grad()
def heun(
    model: Model,
    noise: Tensor,
    times: Tensor,
    sigma_data: float,
    condition: Condition | None = None,
) -> list[Tensor]:
    """EDM's second-order sampler in TrigFlow.

    `x_b = cos b [x_a / cos a + (tan b - tan a)(eps_a + eps_b) / 2]`, where eps is `to_noise`: the
    same numbers as EDM's algorithm 1 in (x_EDM, sigma). A step to t = 0 is Euler's, as there.
    NFE: `2 (len(times) - 1)`, less 1 when the last time is 0.
    """
    flow = TrigFlow(sigma_data)
    path = [noise]
    for t, s in pairwise(torch.as_tensor(times, dtype=torch.float64)):
        x, a, b = path[-1], t.to(noise.dtype), s.to(noise.dtype)
        F = _evaluate(model, x, t, sigma_data, condition)
        slope = flow.to_noise(x, F, a)
        ahead = flow.step(x, F, a, b)
        if s > 0:
            F = _evaluate(model, ahead, s, sigma_data, condition)
            slope = (slope + flow.to_noise(ahead, F, b)) / 2
            # cos b (tan b - tan a) = sin(b - a) / cos a, without the cancellation near pi/2.
            scale, shift = (s.cos() / t.cos()).to(x.dtype), ((s - t).sin() / t.cos()).to(x.dtype)
            ahead = scale * x + shift * slope
        path.append(ahead)
    return path


@torch.no_grad()
def dpm_solver(
    model: Model,
    noise: Tensor,
    times: Tensor,
    sigma_data: float,
    condition: Condition | None = None,
) -> list[Tensor]:
    """DPM-Solver++(2M), second order at one evaluation a step.

    Lu et al. 2022, arXiv 2211.01095, algorithm 2, with `alpha = cos t`, `sigma = sin t` and
    `lambda = -log tan t`. A step to t = 0 is of first order. NFE: `len(times) - 1`.
    """
    flow = TrigFlow(sigma_data)
    x, previous, previous_h = noise, None, None
    path = [noise]
    for t, s in pairwise(torch.as_tensor(times, dtype=torch.float64)):
        denoised = flow.to_data(x, _evaluate(model, x, t, sigma_data, condition), t.to(x.dtype))
        if s == 0:
            return [*path, denoised]
        h = t.tan().log() - s.tan().log()
        estimate = denoised
        if previous is not None:
            correction = (h / (2 * previous_h)).to(x.dtype)
            estimate = denoised + correction * (denoised - previous)
        x = (s.sin() / t.sin()).to(x.dtype) * x - (s.cos() * torch.expm1(-h)).to(x.dtype) * estimate
        previous, previous_h = denoised, h
        path.append(x)
    return path


# The solvers whose trajectories a student can learn the ends of, by the sampler's name.
PATHS = {"ddim": ddim, "dpm": dpm_solver}


class CountedModel:
    """A model that counts its evaluations in samples: `nfe(B)` is what each of B samples cost."""

    def __init__(self, model: Model) -> None:
        self.model, self.evaluations = model, 0

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        self.evaluations += x.shape[0]
        return self.model(x, t, condition)

    def nfe(self, samples: int) -> float:
        return self.evaluations / samples
