"""The semi-discrete stand-in for `jvp`: a central difference, for modules that Dual refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def difference(
    module: Callable[..., Any],
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """`F = module(*primals, **kwargs)` with its graph, and about `J_F tangents` without one.

    As `jvp` takes and returns, `(F(u + h du) - F(u - h du)) / 2h`: three evaluations, and an error
    of about h^2 where h is the cube root of the rounding. The two are in single precision at least,
    for in bf16 their difference would be noise. All three see the same dropout.
    """
    device = primals[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        before = _random_state(device)
        h = torch.finfo(primals[0].dtype).eps ** (1 / 3)
        ends = []
        # Nor TF32: its ten bits would be noise as large as the difference.
        exact = torch.backends.cudnn.flags(allow_tf32=False)
        with torch.no_grad(), torch.autocast(device.type, enabled=False), exact:
            for step in (h, -h):
                _set_random_state(device, before)
                moved = [u + step * du.to(u) for u, du in zip(primals, tangents, strict=True)]
                ends.append(module(*moved, **kwargs))
    F = module(*primals, **kwargs)
    return F, ((ends[0] - ends[1]) / (2 * h)).to(F.dtype)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
