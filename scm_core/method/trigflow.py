"""TrigFlow, the path between data and noise (Lu & Song 2024, arXiv 2410.11081, section 3).

`x_t = cos(t) x0 + sin(t) z` with `z ~ N(0, sigma_data^2 I)` and t in [0, pi/2]; a network
`F(x_t / sigma_data, t)` of unit variance predicts the velocity `cos(t) z - sin(t) x0` over
sigma_data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

Bounds = tuple[Tensor, Tensor]
"""What decoding clips samples to, each to broadcast over them."""


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    """`t` of shape (B,) or () as (B, 1, ..., 1) or (), to broadcast over `x` of shape (B, ...)."""
    return t if t.ndim == 0 else t.reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class TrigFlow:
    """The path for data of per-element standard deviation `sigma_data` and mean 0.

    Samples are (B, C, *grid), times (B,) or a scalar tensor; every method keeps the sample's dtype
    when the times have it, and works in float64.
    """

    sigma_data: float = 0.5

    def interpolate(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """`x_t = cos(t) x0 + sin(t) noise`, where `noise ~ N(0, sigma_data^2)`."""
        t = expand_time(t, x0)
        return t.cos() * x0 + t.sin() * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """`v_t = dx_t/dt = cos(t) noise - sin(t) x0`, the target of `sigma_data F`."""
        t = expand_time(t, x0)
        return t.cos() * noise - t.sin() * x0

    def to_data(self, x_t: Tensor, F: Tensor, t: Tensor) -> Tensor:
        """The denoised data, and sCM's consistency function: `cos(t) x_t - sin(t) sigma_data F`."""
        t = expand_time(t, x_t)
        return t.cos() * x_t - t.sin() * self.sigma_data * F

    def to_noise(self, x_t: Tensor, F: Tensor, t: Tensor) -> Tensor:
        """The predicted noise `sin(t) x_t + cos(t) sigma_data F`."""
        t = expand_time(t, x_t)
        return t.sin() * x_t + t.cos() * self.sigma_data * F

    def step(self, x_t: Tensor, F: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """One DDIM step from t to s: `cos(t-s) x_t - sin(t-s) sigma_data F`, exact for a Dirac."""
        angle = expand_time(t - s, x_t)
        return angle.cos() * x_t - angle.sin() * self.sigma_data * F

    @property
    def t_max(self) -> float:
        """Where sampling starts: `atan(80 / sigma_data)`, EDM's largest noise level."""
        return math.atan(80.0 / self.sigma_data)
