"""The tangent of the continuous-time consistency loss (arXiv 2410.11081, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scm_core.method.trigflow import Bounds, expand_time


def tangent(
    F: Tensor,
    dF: Tensor,
    x_t: Tensor,
    dxdt: Tensor,
    t: Tensor,
    sigma_data: float,
    warmup: float = 1.0,
) -> Tensor:
    """g, the direction in which F moves, before normalisation; (B, C, *grid), without a graph.

    `g = -c^2 (sd F - dx/dt) - r c s (x_t + sd dF/dt)` with c = cos t, s = sin t; at r = 1 it is
    `c df/dt`. `dF` is `c s dF/dt`, the tangent of F at `(x_t / sd, t)` along
    `(c s dx/dt / sd, c s)`: multiplied before the JVP, since dividing after it amplifies rounding
    near 0 and pi/2.
    `dxdt` is the teacher's `sd F_teacher` (sCD) or the velocity v_t (sCT); `warmup` is r in [0, 1];
    t is (B,). The prior weight `1 / (sd tan t)` is already absorbed into the leading c.
    """
    F, dF = F.detach(), dF.detach()
    t = expand_time(t, x_t)
    c, s = t.cos(), t.sin()
    return -(c**2) * (sigma_data * F - dxdt) - warmup * (c * s * x_t + sigma_data * dF)


def _l2(g: Tensor, c: float) -> Tensor:
    return g / expand_time(g.flatten(1).norm(dim=1) + c, g)


def _rms(g: Tensor, c: float) -> Tensor:
    return g / expand_time(g.flatten(1).square().mean(dim=1).sqrt() + c, g)


def _clamp(g: Tensor, c: float) -> Tensor:
    return g.clamp(-c, c)


def within(g: Tensor, x0: Tensor, bounds: Bounds | None) -> Tensor:
    """g, and 0 where the sample x0 = f(x_t, t) lies beyond the `bounds` that decoding clips to.

    What lies there is right already, wherever it moves: without this it keeps a grain.
    """
    if bounds is None:
        return g
    low, high = (bound.to(x0) for bound in bounds)
    return g.masked_fill((x0 < low) | (x0 > high), 0.0)


NORMS: dict[str, Callable[[Tensor, float], Tensor]] = {"l2": _l2, "rms": _rms, "clamp": _clamp}


def normalise(g: Tensor, c: float = 0.1, norm: str = "l2") -> Tensor:
    """`g / (|g| + c)` per sample; `norm` is "l2" (over all D elements) or "rms" (l2 / sqrt(D)).

    The paper uses l2; rms keeps the meaning of `c` the same whatever the size of a sample. Either
    leaves |g| below 1, so that there is no more to clip. "clamp" is the alternative: every element
    within +-c, and g as it is below (FACM, arXiv 2507.03738). Raises ValueError on another name.
    """
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r} is none of {', '.join(NORMS)}")
    return NORMS[norm](g, c)


def warmup_ratio(step: int, steps: int) -> float:
    """r = min(1, step / H), how much of the unstable half of the tangent counts."""
    return min(1.0, step / steps) if steps else 1.0


def student_tangent(
    jvp: Callable[..., tuple[Tensor, Tensor]],
    model: torch.nn.Module,
    x_t: Tensor,
    dxdt: Tensor,
    t: Tensor,
    sigma_data: float,
    warmup: float,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """F with its graph and g, in one pass of `model` through `jvp` (`scm_core.dual.jvp`)."""
    cs = t.cos() * t.sin()
    directions = (expand_time(cs, x_t) * dxdt / sigma_data, cs)
    F, dF = jvp(model, (x_t / sigma_data, t), directions, **kwargs)
    F, dF = F.float() if F.dtype.itemsize < 4 else F, dF.to(x_t.dtype)
    return F, tangent(F, dF, x_t, dxdt, t, sigma_data, warmup)
