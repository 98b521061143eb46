"""Checks of the backbone: its tangent, its time embedding, its precision, that it learns."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn

from scm_core import dual
from scm_core.contract.spec import SIGMA_DATA
from scm_core.method.trigflow import TrigFlow
from scm_core.networks.pretrained import Adapter
from scm_core.networks.pretrained.time import slow
from scm_core.testing.subject import REFUSED, Fault, Subject, point, relative

SLOW = 0.05  # share of a step's time in operations without a rule
BF16_F, BF16_TANGENT = 0.05, 0.2  # relative errors under bf16 autocast
WIDER = 0.1  # what a difference twice as wide may differ by
TIMES, STEP = torch.linspace(0.3, 1.55, 12), 0.01  # of t, in what its embedding is judged by
FLATTEST = 1e-4  # how much F has to vary with t, relative to F
FASTEST = 20.0  # frequency of t in F: trained networks here have 5 to 14, Fourier scale 16 has 150
STEPS, RATE, LEARNED = 400, 1e-3, 0.5  # of overfitting one batch, and the loss that may remain


def tangent(subject: Subject) -> str:
    """F's tangent, as student.tangent finds it.

    By Dual against float64 finite differences and torch's own; a difference against a wider one.
    """
    if subject.by_difference:
        return _wider(subject)
    x, given = subject.seen
    report = dual.verify(subject.backbone(), (x, given))
    if report.refusal is not None:
        raise Fault(REFUSED, f"{report.refusal}; or train it with student.tangent=difference")
    dtype = str(report.dtype).removeprefix("torch.")
    figure = f"error {report.difference:.1e} against finite differences in {dtype}"
    if report.outweighed:
        figure = f"error {report.jvp:.1e} against torch.func.jvp in {dtype}; F has kinks"
    if not report.ok:
        lines = "; ".join(line.strip() for line in str(report).splitlines()[1:])
        raise Fault(figure, f"a rule of Dual is wrong or F is not smooth: {lines}")
    return figure


def _wider(subject: Subject) -> str:
    x, t, given = point(subject)

    def along(width: int) -> torch.Tensor:
        tangents = (width * x.roll(1, 0), width * torch.ones_like(t))
        return subject.jvp(subject.network, (x, t), tangents, condition=given)[1] / width

    error = relative(along(2), along(1))
    figure = f"by student.tangent=difference; one twice as wide differs by {error:.1%}"
    if not error <= WIDER:
        raise Fault(figure, "F is too steep or too rough for a difference: see time embedding")
    return figure


def rules(subject: Subject) -> str:
    """Operations without a rule of Dual, and their share of the time of a training step."""
    if subject.by_difference:
        return "none is needed: student.tangent=difference"
    network = copy.deepcopy(subject.network).train()
    x, t, given = point(subject)

    def step() -> tuple[float, dict[str, float]]:
        started = time.perf_counter()
        with dual.fallbacks() as slow:
            F, _ = dual.jvp(network, (x, t), (x, torch.ones_like(t)), condition=given)
        F.square().mean().backward()
        return time.perf_counter() - started, dict(slow.seconds)

    step()  # what is done once only is no part of the figure
    whole, seconds = step()
    shares = sorted(((part / whole, name) for name, part in seconds.items()), reverse=True)
    figure = ", ".join(f"{name} {share:.0%} of a step" for share, name in shares) or "all have one"
    if sum(seconds.values()) > SLOW * whole:
        raise Fault(
            figure,
            "their tangent is right but slow: use an operation with a rule, or give them one by "
            "scm_core.dual.rule",
        )
    return figure


def bf16(subject: Subject) -> str:
    """How far F and its tangent drift under bf16 autocast."""
    x, t, given = point(subject)
    primals, tangents = (x, t), (x.roll(1, 0), torch.ones_like(t))
    with torch.no_grad():
        exact = subject.jvp(subject.network, primals, tangents, condition=given)
        with torch.autocast(x.device.type, torch.bfloat16):
            rough = subject.jvp(subject.network, primals, tangents, condition=given)
    F, dF = (relative(a.float(), b) for a, b in zip(rough, exact, strict=True))
    figure = f"F {F:.1%}, tangent {dF:.1%}"
    if not (F <= BF16_F and dF <= BF16_TANGENT):
        raise Fault(
            figure,
            "keep t and its embedding in float32, by torch.autocast(..., enabled=False) around "
            "them, or train with trainer.precision=32-true",
        )
    return figure


def time_embedding(subject: Subject) -> str:
    """About the highest frequency of t in F: a fast time embedding ruins the student.

    It is |d2F/dt2| over |dF/dt|, which for sin(f t) is f. What else F does with t, such as a factor
    cos t, hides a fast embedding in dF/dt but not in d2F/dt2. Kinks count by their number alone, as
    means of absolute values have it. A pretrained network is judged as its student starts.
    """
    network, before = subject.network, ""
    F = _over_time(subject, network)  # (3, times, B, C, *grid), at t - STEP, t and t + STEP
    if isinstance(network, Adapter):
        before = f" (before it was slowed, {_frequency(F):.2g})"
        network = copy.deepcopy(network)
        slow(network, *point(subject)[::2])
        F = _over_time(subject, network)
    varies = (F[1] - F[1].mean(0)).square().mean().sqrt()
    if varies < FLATTEST * F[1].square().mean().sqrt():
        advice = "the backbone ignores t: add scm_core.networks.layers.TimeEmbedding to it"
        raise Fault(f"F varies by {varies:.1e} over all t", advice)
    frequency = _frequency(F)
    figure = f"F follows t at a frequency of about {frequency:.2g}{before}"
    if not frequency <= FASTEST:
        raise Fault(
            figure,
            "embed t itself, not 1000 t nor log tan t, by frequencies of at most 1: "
            "scm_core.networks.layers.TimeEmbedding does",
        )
    return figure


def _frequency(F: torch.Tensor) -> float:
    """|d2F/dt2| over |dF/dt|."""
    slope, bend = (F[2] - F[0]) / (2 * STEP), (F[0] - 2 * F[1] + F[2]) / STEP**2
    return float(bend.abs().mean() / slope.abs().mean())


@torch.no_grad()
def _over_time(subject: Subject, network: nn.Module) -> torch.Tensor:
    """F of the same samples at the times around TIMES, in float64 unless it casts inside."""
    x, _, given = point(subject)
    network, times = copy.deepcopy(network), TIMES + STEP * torch.tensor([[-1], [0], [1]])

    def over(dtype: torch.dtype) -> torch.Tensor:
        network.to(dtype)
        there = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
        found = [network(x.to(dtype), t.to(dtype).expand(len(x)), there) for t in times.flatten()]
        return torch.stack(found).unflatten(0, times.shape)

    try:
        return over(torch.float64)
    except RuntimeError:
        return over(torch.float32)


def overfitting(subject: Subject) -> str:
    """The backbone starts to learn one small batch by heart: half of the diffusion loss goes."""
    network = subject.backbone().train()
    x0, _, given = point(subject)
    flow, t = TrigFlow(SIGMA_DATA), torch.linspace(0.3, 1.4, len(x0))
    x0, noise = x0 * SIGMA_DATA, SIGMA_DATA * torch.randn_like(x0)
    x, target = flow.interpolate(x0, noise, t), flow.velocity(x0, noise, t) / SIGMA_DATA
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, betas=(0.9, 0.99))
    losses = []
    for _ in range(STEPS):
        loss = (network(x / SIGMA_DATA, t, given) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < LEARNED * losses[0]:
            break
    figure = f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps on one batch"
    if not losses[-1] < LEARNED * losses[0]:
        raise Fault(
            figure,
            "the backbone cannot even learn one batch by heart: look for a cut gradient, "
            "a saturating output, or a patch as large as the grid",
        )
    return figure
