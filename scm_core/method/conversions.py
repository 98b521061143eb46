"""Networks of other diffusion families as TrigFlow's F, by matching the signal-to-noise ratio.

A sample of a general path `x' = a x0 + b e` (e of unit variance) has the TrigFlow time
`tan t = b / (a sigma_data)` and the position `x_t = sigma_data x' / sqrt(a^2 sigma_data^2 + b^2)`
(arXiv 2410.11081, section 3 and appendix B). Samples are (B, ...), times (B,).
"""

from __future__ import annotations

from torch import Tensor

from scm_core.method.trigflow import expand_time


def from_path(x: Tensor, a: Tensor, b: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """`(x_t, t)` of a sample `x = a x0 + b e`; `a` and `b` are (B,)."""
    scale = sigma_data / (a**2 * sigma_data**2 + b**2).sqrt()
    return expand_time(scale, x) * x, (b / sigma_data).atan2(a)


def velocity_from_data(x_t: Tensor, denoised: Tensor, t: Tensor, sigma_data: float) -> Tensor:
    """F of a denoiser's output: `F = (cos(t) x_t - D) / (sigma_data sin(t))`."""
    t = expand_time(t, x_t)
    return (t.cos() * x_t - denoised) / (sigma_data * t.sin())


def edm_to_trigflow(x: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """`(x_t, t)` of EDM's `x = x0 + sigma e`; EDM's own network output is exactly `-F`."""
    return from_path(x, sigma.new_ones(()).expand_as(sigma), sigma, sigma_data)


def trigflow_to_edm(x_t: Tensor, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """EDM's `(x, sigma)`: `sigma = sigma_data tan t`, `x = x_t / cos t`."""
    return x_t / expand_time(t, x_t).cos(), sigma_data * t.tan()


def edm_noise_condition(t: Tensor, sigma_data: float) -> Tensor:
    """What an EDM network is conditioned on: `c_noise = ln(sigma) / 4`."""
    return (sigma_data * t.tan()).log() / 4


def vp_to_trigflow(x: Tensor, alpha_bar: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """`(x_t, t)` of variance-preserving `x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) e`."""
    return from_path(x, alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), sigma_data)


def vp_noise_to_velocity(x_t: Tensor, noise: Tensor, t: Tensor, sigma_data: float) -> Tensor:
    """F of a noise-predicting network: from `sigma_data e = sin(t) x_t + cos(t) sigma_data F`."""
    t = expand_time(t, x_t)
    return (noise - t.sin() * x_t / sigma_data) / t.cos()


def flow_to_trigflow(x: Tensor, u: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """`(x_t, t)` of rectified flow's `x = (1 - u) x0 + u e`."""
    return from_path(x, 1 - u, u, sigma_data)


def trigflow_to_flow(x_t: Tensor, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """Rectified flow's `(x, u)`: `u = sigma_data tan t / (1 + sigma_data tan t)`."""
    ratio = sigma_data * t.sin()
    u = ratio / (t.cos() + ratio)
    scale = ((1 - u) ** 2 * sigma_data**2 + u**2).sqrt() / sigma_data
    return expand_time(scale, x_t) * x_t, u


def flow_velocity_to_velocity(x: Tensor, velocity: Tensor, u: Tensor, sigma_data: float) -> Tensor:
    """F of a rectified-flow network's `velocity ~ e - x0` at `(x, u)`.

    `x0 = x - u v` and `e = x + (1 - u) v` give `sigma_data F = cos(t) sigma_data e - sin(t) x0`.
    """
    _, t = flow_to_trigflow(x, u, sigma_data)
    t, u = expand_time(t, x), expand_time(u, x)
    return t.cos() * (x + (1 - u) * velocity) - t.sin() / sigma_data * (x - u * velocity)
