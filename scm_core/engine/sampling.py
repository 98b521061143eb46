"""From noise to samples, whatever the modality: what sampling, previews and evaluation share."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from scm_core.base.errors import UserError
from scm_core.contract.fields import Condition, Label, Schema
from scm_core.engine import config as configuration
from scm_core.method import samplers
from scm_core.method.guidance import Guided
from scm_core.method.samplers import Model

# By the name that commands use.
ODE_SAMPLERS = {"ddim": samplers.ddim, "heun": samplers.heun, "dpm": samplers.dpm_solver}


def cycled_condition(schema: Schema, n: int) -> Condition:
    """`n` conditions that go through the schema's examples in turn, or through the classes.

    Vectors without examples stay null, which a teacher has learnt and a student has not.
    """
    condition, turn = {}, torch.arange(n)
    for key, field in schema.items():
        if field.examples:
            condition[key] = torch.tensor(field.examples)[turn % len(field.examples)]
        else:
            condition[key] = turn % field.classes if isinstance(field, Label) else field.null(n)
    return condition


def seeded_noise(
    shape: tuple[int, ...], n: int, seed: int, sigma_data: float, first: int = 0
) -> Tensor:
    """Starting noise N(0, sigma_data^2) of samples `first` to `first + n`, (n, *shape).

    Sample i depends on `seed` and i alone.
    """
    rows = [torch.randn(shape, generator=_generator(seed, i)) for i in range(first, first + n)]
    return sigma_data * torch.stack(rows)


def fresh_noise(seed: int, first: int) -> torch.Generator:
    """The generator of what steps after the first add, for the batch that starts at `first`.

    It is one of the CPU, so that the same seed draws the same samples on every device.
    """
    return _generator(seed, (1 << 23) + first)


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
    name: str, steps: int, sigma_data: float, guidance: float = 1.0, schema: Schema | None = None
):
    """A function `(model, noise, condition, generator, fresh) -> x` by the sampler's name.

    Only `consistency` has a use for the last two. Names are `consistency`, `ddim`, `heun` and
    `dpm`; UserError for another.
    """
    if name != "consistency" and name not in ODE_SAMPLERS:
        known = ["consistency", *ODE_SAMPLERS]
        raise UserError(f"no sampler {name}; {configuration.nearest(name, known)}")

    def draw(
        model: Model,
        noise: Tensor,
        condition: Condition,
        generator: torch.Generator | None = None,
        fresh: Sequence[Tensor] | None = None,
    ) -> Tensor:
        model = Guided(model, guidance, schema or {})
        if name == "consistency":
            times = samplers.consistency_times(steps, sigma_data)
            return samplers.consistency(
                model, noise, times, sigma_data, condition, generator, fresh
            )
        times = samplers.ode_times(steps, sigma_data)
        return ODE_SAMPLERS[name](model, noise, times, sigma_data, condition)

    return draw


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices that cover `range(n)`, `size` at a time."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
