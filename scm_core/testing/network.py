"""Checks of the backbone: its tangent, its time embedding, its precision, that it learns."""

from __future__ import annotations

import copy
import math
import time

import torch

from scm_core import dual
from scm_core.modality import SIGMA_DATA
from scm_core.testing.subject import REFUSED, Fault, Subject, point, relative
from scm_core.trigflow import TrigFlow

SLOW = 0.05  # share of a step's time in operations without a rule
BF16_F, BF16_TANGENT = 0.05, 0.2  # relative errors under bf16 autocast
TIMES = torch.linspace(0, math.pi / 2, 16)
FLATTEST = 1e-4  # how much F has to vary with t, relative to F
STEEPEST = 20.0  # |dF/dt| near pi/2 over that; t itself gives 3, a Fourier scale of 16 above 100
STEPS, RATE, LEARNED = 400, 1e-3, 0.5  # of overfitting one batch, and the loss that may remain


def tangent(subject: Subject) -> str:
    """F's tangent by Dual against float64 finite differences and torch's own."""
    x, given = subject.seen
    report = dual.verify(subject.backbone(), (x, given))
    if report.refusal is not None:
        raise Fault(REFUSED, report.refusal)
    dtype = str(report.dtype).removeprefix("torch.")
    figure = f"error {report.difference:.1e} against finite differences in {dtype}"
    if not report.ok:
        lines = "; ".join(line.strip() for line in str(report).splitlines()[1:])
        raise Fault(figure, f"a rule of Dual is wrong or F is not smooth: {lines}")
    return figure


def rules(subject: Subject) -> str:
    """Operations without a rule of Dual, and their share of the time of a training step."""
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
        exact = dual.jvp(subject.network, primals, tangents, condition=given)
        with torch.autocast(x.device.type, torch.bfloat16):
            rough = dual.jvp(subject.network, primals, tangents, condition=given)
    F, dF = (relative(a.float(), b) for a, b in zip(rough, exact, strict=True))
    figure = f"F {F:.1%}, tangent {dF:.1%}"
    if F > BF16_F or dF > BF16_TANGENT:
        raise Fault(
            figure,
            "keep t and its embedding in float32, by torch.autocast(..., enabled=False) around "
            "them, or train with trainer.precision=32-true",
        )
    return figure


def time_embedding(subject: Subject) -> str:
    """|dF/dt| near pi/2, where a wild time embedding ruins the student.

    Over how much F varies with t at all, it is about the highest frequency of t in F: a straight
    line over (0, pi/2) has 2.2, a sine of frequency f has f.
    """
    x, _, given = point(subject)
    late = torch.linspace(1.4, 1.56, len(x))
    with torch.no_grad():
        over_t = torch.stack([subject.network(x, t.expand(len(x)), given) for t in TIMES])
        tangents = (torch.zeros_like(x), torch.ones_like(late))
        _, dF = dual.jvp(subject.network, (x, late), tangents, condition=given)
    varies = (over_t - over_t.mean(0)).square().mean().sqrt()
    if varies < FLATTEST * over_t.square().mean().sqrt():
        advice = "the backbone ignores t: add scm_core.layers.TimeEmbedding to it"
        raise Fault(f"F varies by {varies:.1e} over all t", advice)
    steepness = float(dF.square().mean().sqrt() / varies)
    figure = f"|dF/dt| near pi/2 is {steepness:.2g} times what F varies by"
    if steepness > STEEPEST:
        raise Fault(
            figure,
            "embed t itself, not 1000 t, by frequencies of at most 1: "
            "scm_core.layers.TimeEmbedding does",
        )
    return figure


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
