"""From noise to samples, whatever the modality: what commands, previews and evaluation share."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scm_core.base import distributed
from scm_core.base.arguments import nearest, place
from scm_core.base.errors import UserError
from scm_core.contract.fields import Condition, Schema, null_condition, parse_condition
from scm_core.engine.checkpoint import Checkpoint
from scm_core.method import samplers
from scm_core.method.guidance import Guided
from scm_core.method.samplers import Model

# By the name that commands use.
ODE_SAMPLERS = {"ddim": samplers.ddim, "heun": samplers.heun, "dpm": samplers.dpm_solver}

STEPS = 2  # of a student
SAMPLER, TEACHER_STEPS = "dpm", 32


@dataclass
class SignConfig:
    """PEM files: a certificate, with those between it and its CA behind it, and its key."""

    certificate: str | None = place()
    key: str | None = place()


@dataclass
class SampleConfig:
    """What to sample, and where to; and `condition.NAME`, or NAME where no key is called so."""

    checkpoint: str | None = place()
    modality: str | None = None
    steps: int | None = None
    sampler: str | None = None
    guidance: float | None = None
    n: int = 64
    batch_size: int = 64
    seed: int = 0
    out: str = place("samples")
    sign: SignConfig = dataclasses.field(default_factory=SignConfig)


def cycled_condition(schema: Schema, n: int) -> Condition:
    """`n` conditions that go through the schema's examples in turn, or through the classes.

    Vectors without examples stay null, which a teacher has learnt and a student has not.
    """
    return parse_condition(schema, {}, n)


def refuse_null(model: Checkpoint, condition: Condition) -> None:
    """UserError where a student would be asked for what it has never seen, a null condition."""
    for key, value in condition.items() if model.stage == "student" else ():
        kind = model.condition[key]
        if torch.equal(value, kind.null(len(value))):
            raise UserError(
                f"{model.path} holds no {key} to draw by: give condition.{key}={kind.form}"
            )


def seeded_noise(
    shape: tuple[int, ...], n: int, seed: int, sigma_data: float, first: int = 0
) -> Tensor:
    """Starting noise N(0, sigma_data^2) of samples `first` to `first + n`, (n, *shape).

    Sample i depends on `seed` and i alone.
    """
    rows = [torch.randn(shape, generator=_generator(seed, i)) for i in range(first, first + n)]
    return sigma_data * torch.stack(rows)


def fresh_noise(seed: int, first: int) -> Callable[[Tensor], Tensor]:
    """What steps after the first add, for the batch that starts at `first`: N(0, 1) like a tensor.

    It is drawn on the CPU, so that the same seed draws the same samples on every device.
    """
    generator = _generator(seed, (1 << 23) + first)

    def like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)

    return like


def fold(seed: int) -> int:
    """A seed, any integer, as one of 32 bits: itself, where it is one."""
    return seed if 0 <= seed < 1 << 32 else zlib.crc32(str(seed).encode())


def _generator(seed: int, i: int) -> torch.Generator:
    """The generator of a seed, any integer, and of i < 2^24.

    torch looks at 32 bits alone: what does not fit into them is hashed into them.
    """
    hashed = zlib.crc32(str(seed >> 8).encode()) if seed >> 8 else 0
    return torch.Generator().manual_seed(((seed << 24) + i & 0xFFFFFFFF) ^ hashed)


def sampler(
    name: str,
    steps: int,
    sigma_data: float,
    guidance: float = 1.0,
    schema: Schema | None = None,
    ends: tuple[float, float] | None = None,
) -> Callable[..., Tensor]:
    """A function `(model, noise, condition, fresh) -> x` by the sampler's name.

    Only `consistency` has a use for `fresh`, the noise that its later steps add, and for the
    student's `ends` of its times. Names are `consistency`, `ddim`, `heun` and `dpm`; UserError
    for another.
    """
    if name != "consistency" and name not in ODE_SAMPLERS:
        known = ["consistency", *ODE_SAMPLERS]
        raise UserError(f"no sampler {name}; {nearest(name, known)}")

    def draw(
        model: Model,
        noise: Tensor,
        condition: Condition,
        fresh: Callable[[Tensor], Tensor] = torch.randn_like,
    ) -> Tensor:
        model = Guided(model, guidance, partial(null_condition, schema or {}))
        if name == "consistency":
            times = samplers.consistency_times(steps, sigma_data, ends)
            return samplers.consistency(model, noise, times, sigma_data, condition, fresh=fresh)
        times = samplers.ode_times(steps, sigma_data)
        return ODE_SAMPLERS[name](model, noise, times, sigma_data, condition)[-1]

    return draw


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices that cover `range(n)`, `size` at a time."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def make_sampler(
    model: Checkpoint,
    name: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Callable[..., Tensor]:
    """The sampling function that suits the checkpoint's stage; UserError for a wrong wish."""
    if steps is not None and steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    if guidance is not None and not 0 <= guidance < math.inf:
        raise UserError(f"guidance={guidance} is no number from 0 on")
    baked = model.config.student.guidance
    if model.stage == "student":
        if name not in (None, "consistency"):
            raise UserError(f"sampler={name} is for a teacher; a student takes steps= alone")
        if guidance not in (None, baked):
            raise UserError(f"this student was distilled at guidance {baked}; leave guidance= out")
        return sampler("consistency", steps or STEPS, model.sigma_data, ends=model.ends)
    if name == "consistency":
        raise UserError("a teacher cannot be sampled by consistency steps; use ddim, heun or dpm")
    scale = baked if guidance is None else guidance
    steps = steps or TEACHER_STEPS
    return sampler(name or SAMPLER, steps, model.sigma_data, scale, model.condition)


@torch.no_grad()
def sample_all(
    model: Checkpoint,
    draw: Callable[..., Tensor],
    condition: Condition,
    n: int,
    seed: int,
    batch_size: int,
) -> Tensor:
    """`n` samples x (n, C, *grid) on the CPU, the same for the same seed and batch size.

    Processes that work together sample one batch each in turn, and all of them get all samples.
    """
    device, found = model.device, []
    for part in distributed.round_robin(batches(n, batch_size)):
        noise = seeded_noise(
            model.shape, part.stop - part.start, seed, model.sigma_data, first=part.start
        )
        there = {key: value[part].to(device) for key, value in condition.items()}
        fresh = fresh_noise(seed, part.start)
        found.append(draw(model.model, noise.to(device), there, fresh).cpu())
    return torch.cat(distributed.interleaved(found))
