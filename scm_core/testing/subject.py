"""A plugin under test, and what a check of it says."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from scm_core.contract.fields import Condition
from scm_core.contract.spec import SIGMA_DATA, Batch, Codec, DataModule, ModalitySpec
from scm_core.data.latents import run_autoencoder
from scm_core.dual.verification import awakened
from scm_core.engine.stages.stage import TANGENTS

REFUSED = "Dual cannot run the backbone"
SAMPLES = 8  # of a batch, in the checks of the network


class Fault(Exception):
    """What a check found: the measured figure, and what to change."""

    def __init__(self, figure: str, advice: str) -> None:
        super().__init__(figure)
        self.figure, self.advice = figure, advice


@dataclass(frozen=True)
class Result:
    """One check: its name, whether it passed, what it measured, and what to change if it failed."""

    name: str
    ok: bool
    figure: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{'ok    ' if self.ok else 'FAILED'}  {self.name:<18} {self.figure}"
        return line if self.ok else f"{line}\n        {self.advice}"


@dataclass(frozen=True)
class Subject:
    """A plugin under test, its parts built; `batch` and `held_out` are from its two loaders.

    `seen` is what the backbone is trained on: `batch`, or its standardised latents. `network` is
    the backbone in eval mode with random values where a fresh one has zeros, for a network that
    returns zeros would show nothing. The data were set up once, which took `seconds`, and `drew`
    says whether that took numbers out of a global generator.
    """

    spec: ModalitySpec
    config: DictConfig
    data: DataModule
    codec: Codec
    network: nn.Module
    batch: Batch
    held_out: Batch
    seen: Batch
    seconds: float
    drew: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the backbone is trained on."""
        return tuple(self.seen.x.shape[1:])

    @property
    def jvp(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """What gives F and its tangent in training."""
        return TANGENTS[self.config.student.tangent]

    @property
    def by_difference(self) -> bool:
        """Whether that is no business of Dual."""
        return self.config.student.tangent == "difference"

    def backbone(self) -> nn.Module:
        """A fresh one."""
        data = self.data
        return self.spec.backbone(self.config, self.shape, data.condition, data.statistics)


def prepare(spec: ModalitySpec, config: DictConfig) -> Subject:
    """The plugin's parts, built as training builds them."""
    started, before = time.perf_counter(), global_state()
    data = spec.data(config)
    data.setup()
    seconds, drew = time.perf_counter() - started, global_state() != before
    batch, held_out = first(data.train_dataloader()), first(data.val_dataloader())
    seen = latents(spec, config, data, batch)
    shape = tuple(seen.x.shape[1:])
    network = spec.backbone(config, shape, data.condition, data.statistics)
    return Subject(
        spec=spec,
        config=config,
        data=data,
        codec=spec.codec(config, data.statistics),
        network=awakened(network).eval(),
        batch=batch,
        held_out=held_out,
        seen=seen,
        seconds=seconds,
        drew=drew,
    )


def latents(spec: ModalitySpec, config: DictConfig, data: DataModule, batch: Batch) -> Batch:
    """A batch as standardised latents of the plugin's autoencoder, untrained or not, if any."""
    autoencoder = spec.autoencoder(config, tuple(data.shape), data.statistics)
    if autoencoder is None:
        return batch
    z = run_autoencoder(autoencoder.eval(), "encode", batch.x)
    others = [dimension for dimension in range(z.ndim) if dimension != 1]
    mean, std = z.mean(others, keepdim=True), z.std(others, keepdim=True)
    return Batch((z - mean) / std.clamp(min=1e-6) * SIGMA_DATA, batch.condition)


def global_state() -> tuple[Any, ...]:
    """Of all global generators, to be compared."""
    numpy = np.random.get_state()
    return (torch.get_rng_state().tolist(), numpy[1].tolist(), numpy[2:], random.getstate())


@contextmanager
def seeded(number: int) -> Iterator[None]:
    """All global generators start from `number` inside, and go on as before afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def point(subject: Subject) -> tuple[Tensor, Tensor, Condition]:
    """A few samples of unit variance as the backbone sees them, their times and conditions."""
    x = subject.seen.x[:SAMPLES] / SIGMA_DATA
    given = {key: value[:SAMPLES] for key, value in subject.seen.condition.items()}
    return x, torch.linspace(0.1, 1.5, len(x)), given


def first(batches: Any) -> Any:
    """The first batch of a loader."""
    return next(iter(batches))


def relative(value: Tensor, reference: Tensor) -> float:
    """`|a - b| / |b|`."""
    return float((value - reference).norm() / reference.norm())


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of tensors are the same to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
