"""Training gone wrong on purpose, beside the same training done right, each as a curve.

    python benchmarks/misbehaving.py [NAME ...]

Names are bf16, fourier, momentum, warmup and statistics; without one, all. The network is a
transformer of 0.1 M parameters and the data are sine waves of four pitches, 32 values each, so that
all takes a few minutes of one core. Curves go to docs/images/misbehaving-NAME.png; what they begin,
peak and end with is printed.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from scm_core import dual
from scm_core.contract.fields import Label
from scm_core.contract.spec import SIGMA_DATA
from scm_core.engine.stages.stage import cosine
from scm_core.evaluation import plots
from scm_core.method.objectives.consistency import Consistency, consistency_loss
from scm_core.method.objectives.diffusion import diffusion_loss
from scm_core.method.proposal import LogNormalProposal
from scm_core.method.tangent import (
    normalise,
    student_tangent,
    warmup_ratio,
)
from scm_core.method.trigflow import TrigFlow
from scm_core.method.weighting import LearnedWeight
from scm_core.networks import backbones
from scm_core.networks.layers import TimeEmbedding, positional_embedding

PICTURES = Path(__file__).parents[1] / "docs" / "images"
LENGTH, BATCH, EVERY = 32, 32, 10
TEACHER, STUDENT, WARMUP = 800, 600, 200  # steps
RATE, STUDENT_RATE = 2e-3, 1e-3
MOMENTUM = 0.9, 0.99  # Adam's betas where there is a loss to descend
WIDTH = 64
SCHEMA = {"pitch": Label(4)}
FLOW = TrigFlow(SIGMA_DATA)


def waves(std: float = SIGMA_DATA) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Endless batches of sine waves at random phases, of a standard deviation that may be wrong."""
    time = 2 * math.pi * torch.arange(LENGTH) / LENGTH
    while True:
        pitch = torch.randint(4, (BATCH,))
        phase = 2 * math.pi * torch.rand(BATCH, 1)
        wave = torch.sin((pitch[:, None] + 1) * time + phase)
        yield std * math.sqrt(2) * wave[:, None], {"pitch": pitch}


def network(time: nn.Module | None = None) -> nn.Module:
    """A small transformer, with another time embedding if one is given."""
    options = {"width": WIDTH, "depth": 2, "heads": 2}
    built = backbones.build(backbones.BackboneConfig(patch=4, options=options), (1, LENGTH), SCHEMA)
    built.time = time or built.time
    return built


class Fourier(nn.Module):
    """Sines and cosines of t at random frequencies of a scale, as EDM and its heirs embed time."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.frequency = nn.Buffer(2 * math.pi * scale * torch.randn(64))
        self.layers = nn.Sequential(
            nn.Linear(128, channels), nn.SiLU(), nn.Linear(channels, channels)
        )

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequency
        return self.layers(torch.cat([angle.cos(), angle.sin()], dim=1))


class Embedding(nn.Module):
    """The core's embedding of `scale` t; in bf16 as if autocast had got hold of it."""

    def __init__(self, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.scale, self.dtype = TimeEmbedding(WIDTH), scale, dtype

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, torch.bfloat16, self.dtype == torch.bfloat16):
            waves = positional_embedding((self.scale * t).to(self.dtype), self.inner.width)
            return self.inner.second(nn.functional.silu(self.inner.first(waves))).float()


def noised(x0: Tensor, proposal: LogNormalProposal) -> tuple[Tensor, Tensor, Tensor]:
    """`(x_t, velocity, t)`."""
    t, noise = proposal.sample(len(x0)), SIGMA_DATA * torch.randn_like(x0)
    return FLOW.interpolate(x0, noise, t), FLOW.velocity(x0, noise, t), t


def steps(
    model: nn.Module, total: int, rate: float, betas: tuple[float, float] = MOMENTUM
) -> Iterator[tuple[int, LearnedWeight, object]]:
    """Each step's number, w(t) and a function that takes the step for a loss."""
    weight = LearnedWeight()
    optimizer = torch.optim.Adam([*model.parameters(), *weight.parameters()], rate, betas)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: cosine(i, total, 50))

    def descend(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        scheduler.step()

    for step in range(total):
        yield step, weight, descend


def smoothed(points: list[tuple[int, float]], window: int = EVERY) -> list[tuple[int, float]]:
    """Means over so many steps."""
    parts = [points[i : i + window] for i in range(0, len(points), window)]
    return [(part[-1][0] + 1, sum(y for _, y in part) / len(part)) for part in parts]


def teach(model: nn.Module, std: float = SIGMA_DATA) -> list[tuple[int, float]]:
    """Train a teacher in place; its error by step, as the progress bar shows it."""
    proposal, curve, batches = LogNormalProposal(-0.8, 1.6), [], waves(std)
    for step, weight, descend in steps(model, TEACHER, RATE):
        x0, condition = next(batches)
        x_t, velocity, t = noised(x0, proposal)
        F = model(x_t / SIGMA_DATA, t, condition)
        descend(diffusion_loss(F, velocity, weight(t), SIGMA_DATA))
        error = (SIGMA_DATA * F.detach() - velocity).square().mean() / SIGMA_DATA**2
        curve.append((step, error.item()))
    return smoothed(curve)


def distil(
    teacher: nn.Module,
    warmup: int = WARMUP,
    rate: float = STUDENT_RATE,
    betas: tuple[float, float] = Consistency.betas,
) -> list[tuple[int, float]]:
    """Distil a student from it; |g| by step, as the progress bar shows it."""
    student, proposal, batches = copy.deepcopy(teacher), LogNormalProposal(-1.0, 1.4), waves()
    curve = []
    for step, weight, descend in steps(student, STUDENT, rate, betas):
        x0, condition = next(batches)
        x_t, _, t = noised(x0, proposal)
        with torch.no_grad():
            dxdt = SIGMA_DATA * teacher(x_t / SIGMA_DATA, t, condition)
        ratio = warmup_ratio(step, warmup)
        F, g = student_tangent(
            dual.jvp, student, x_t, dxdt, t, SIGMA_DATA, ratio, condition=condition
        )
        descend(consistency_loss(F, normalise(g, norm="rms"), weight(t)))
        curve.append((step, g.square().mean().sqrt().item() / SIGMA_DATA))
    return smoothed(curve)


def taught(time: nn.Module | None = None) -> nn.Module:
    """A teacher with that time embedding, everything seeded."""
    model = network(time)
    teach(model)
    return model


def bf16() -> dict[str, list[tuple[int, float]]]:
    """The time embedding in bf16, of t and of 1000 t."""
    names = {"1000 t in bf16": 1000.0, "1000 t in float32": 1000.0, "t in bf16": 1.0}
    curves = {}
    for name, scale in names.items():
        dtype = torch.bfloat16 if "bf16" in name else torch.float32
        curves[name] = distil(taught(Embedding(scale, dtype)))
    return {**curves, "t in float32": distil(taught())}


def fourier() -> dict[str, list[tuple[int, float]]]:
    """A Fourier embedding of scale 16."""
    faulty = taught(Fourier(WIDTH, 16.0))
    return {"Fourier, scale 16": distil(faulty), "positional": distil(taught())}


def momentum() -> dict[str, list[tuple[int, float]]]:
    """Momentum on the consistency loss."""
    teacher, curves = taught(), {}
    for rate in (STUDENT_RATE, STUDENT_RATE / 10):
        curves[f"momentum 0.9, rate {rate:g}"] = distil(teacher, 0, rate, MOMENTUM)
        curves[f"none, rate {rate:g}"] = distil(teacher, 0, rate)
    return curves


def warmup() -> dict[str, list[tuple[int, float]]]:
    """No warm-up of the tangent."""
    teacher = taught()
    return {"no warm-up": distil(teacher, 0), f"{WARMUP} steps": distil(teacher)}


def statistics() -> dict[str, list[tuple[int, float]]]:
    """Data of standard deviation 1."""
    return {f"std {std}": teach(network(), std) for std in (1.0, SIGMA_DATA)}


CASES = {
    **dict.fromkeys((bf16, fourier, momentum, warmup), "|g|"),
    statistics: "the teacher's error",
}


def main(names: list[str]) -> None:
    """Run the cases of these names, or all."""
    for case, figure in CASES.items():
        if names and case.__name__ not in names:
            continue
        torch.manual_seed(0)
        curves = case()
        path = PICTURES / f"misbehaving-{case.__name__}.png"
        print(plots.curves_plot(curves, path, ("training step", figure), case.__doc__.rstrip(".")))
        for name, points in curves.items():
            values = [value for _, value in points]
            print(f"  {name}: from {values[0]:.2f} to {values[-1]:.2f}, peak {max(values):.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
