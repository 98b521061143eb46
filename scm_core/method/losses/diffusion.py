"""The TrigFlow diffusion loss (arXiv 2410.11081, equation 5)."""

from __future__ import annotations

from torch import Tensor

from scm_core.method.losses.weighting import learned, per_sample


def diffusion_loss(F: Tensor, velocity: Tensor, weight: Tensor, sigma_data: float) -> Tensor:
    """`e^w / D |sigma_data F - v_t|^2 - w` per sample, (B,).

    F and the velocity are (B, C, *grid), the learned log-weight w(t) is (B,).
    """
    return learned(per_sample(sigma_data * F - velocity), weight)
