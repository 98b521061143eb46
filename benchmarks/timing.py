"""What the benchmarks share: a clock that waits for the device, a student and its appetite."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from scm_core import TrigFlow, dual
from scm_core.contract.spec import SIGMA_DATA, Batch, DataModule, ModalitySpec
from scm_core.engine.checkpoint import Checkpoint
from scm_core.method.objectives.consistency import consistency_loss
from scm_core.method.proposal import LogNormalProposal
from scm_core.method.tangent import normalise, student_tangent


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def untrained(
    spec: ModalitySpec, full: DictConfig, data: DataModule, shape: tuple[int, ...]
) -> Checkpoint:
    """A student of samples of ``shape`` that has learnt nothing, on the CPU."""
    return Checkpoint(
        path=Path(),
        stage="student",
        step=0,
        spec=spec,
        config=full,
        shape=shape,
        condition=data.condition,
        statistics=data.statistics,
        sigma_data=SIGMA_DATA,
        backbone=spec.backbone(full, shape, data.condition, data.statistics).eval(),
        codec=spec.codec(full, data.statistics),
    )


def student_rate(backbone: nn.Module, network: Callable, batch: Batch, duration: float) -> float:
    """Samples per second that a consistency training step (sCT) with its optimiser consumes.

    ``network`` calls the ``backbone``, at the precision that it is to have; the same ``batch`` is
    trained on for ``duration`` seconds.
    """
    optimiser = torch.optim.Adam(backbone.parameters(), lr=1e-4)
    _student_step(network, optimiser, batch)  # the first one allocates
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < duration:
        _student_step(network, optimiser, batch)
        steps += 1
    return steps * len(batch.x) / (time.perf_counter() - start)


def _student_step(network: Callable, optimiser: torch.optim.Optimizer, batch: Batch) -> None:
    flow = TrigFlow(SIGMA_DATA)
    t = LogNormalProposal(-1.0, 1.4, SIGMA_DATA).sample(len(batch.x))
    noise = torch.randn_like(batch.x) * SIGMA_DATA
    x_t, velocity = flow.interpolate(batch.x, noise, t), flow.velocity(batch.x, noise, t)
    F, g = student_tangent(
        dual.jvp, network, x_t, velocity, t, SIGMA_DATA, 1.0, condition=batch.condition
    )
    optimiser.zero_grad()
    consistency_loss(F, normalise(g), torch.zeros_like(t)).mean().backward()
    optimiser.step()
