"""Networks of other diffusion families as TrigFlow's F, by matching the signal-to-noise ratio.

A sample of a general path `x' = a x0 + b e` (e of unit variance) has the TrigFlow time
`tan t = b / (a sigma_data)` and the position `x_t = sigma_data x' / sqrt(a^2 sigma_data^2 + b^2)`
(arXiv 2410.11081, section 3 and appendix B). Samples are (B, ...), times (B,).

The functions are those closed forms for data of any `sigma_data`. The classes say how a whole
network of such a family is asked for F at `x = x_t / sigma_data`, of unit variance, and t.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from scm_core.method.trigflow import expand_time

# A network of noise is divided by cos t, of data by sin t: outside of this it has nothing to say.
BEGIN, END = 1e-6, math.atan(250.0)


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


class RectifiedFlow(nn.Module):
    """A network of `x' = (1 - u) x0 + u e` that predicts `e - x0`, for x0 of unit variance.

    Its time is `u`, or `1 - u` where it is `reversed` (then it predicts `x0 - e`), times `steps`.
    """

    def __init__(self, steps: float = 1.0, reversed: bool = False) -> None:
        super().__init__()
        self.steps, self.reversed = steps, reversed

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Its own sample and time for x = cos(t) x0 + sin(t) e, (B, ...), and t (B,)."""
        both = t.sin() + t.cos()
        own = t.cos() if self.reversed else t.sin()
        return x / expand_time(both, x), own / both * self.steps

    def velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """F of its output: `((cos t - sin t) x + v) / (cos t + sin t)`."""
        t = expand_time(t, x)
        v = -output if self.reversed else output
        return ((t.cos() - t.sin()) * x + v) / (t.cos() + t.sin())


class VariancePreserving(nn.Module):
    """A network of `x' = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) e`, for x0 of unit variance.

    `alpha_bar` (steps,) is that of its times 0, 1, ..., between which they are linear in the angle
    t, where `cos t = sqrt(alpha_bar)`. It predicts "epsilon" (e), "v_prediction" (F itself) or
    "sample" (x0). Beyond the last time its x0 stays what it is there, for it knows no more noise.
    """

    def __init__(self, alpha_bar: Tensor, predicts: str = "epsilon") -> None:
        super().__init__()
        if predicts not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"a network that predicts {predicts} is not known")
        self.predicts = predicts
        angles = alpha_bar.double().clamp(0, 1).sqrt().acos()
        # No buffers, which `half` would round: they are moved where they are needed.
        self.low, self.width = angles[:-1], angles.diff().clamp(min=1e-9)
        self.end = min(float(angles[-1]), END)

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Its own sample and time for x = cos(t) x0 + sin(t) e, (B, ...), and t (B,)."""
        self.low, self.width = self.low.to(t.device), self.width.to(t.device)
        passed = (t[:, None] - self.low.to(t.dtype)) / self.width.to(t.dtype)
        return x, passed.clamp(0, 1).sum(1)

    def velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """F of its output; of noise `(e - sin(t) x) / cos t`, of data `(cos(t) x - x0) / sin t`."""
        t = expand_time(t, x).clamp(min=BEGIN)
        known = t.clamp(max=self.end)
        if self.predicts == "sample":
            return (t.cos() * x - output) / t.sin()
        F = output if self.predicts == "v_prediction" else (output - known.sin() * x) / known.cos()
        return ((t.cos() - known.cos()) * x + known.sin() * F) / t.sin()


class EDM(nn.Module):
    """A network under EDM's preconditioning (arXiv 2206.00364, table 1), for x0 of unit variance.

    `sigma_data` is its preconditioning's. Its time is `ln(sigma) / 4`, or `2 / pi atan(sigma)`
    where it is `cosine`; `sign` is -1 where F is minus its output, as in EDM itself.
    """

    def __init__(self, sigma_data: float = 0.5, cosine: bool = False, sign: int = -1) -> None:
        super().__init__()
        self.sigma_data, self.cosine, self.sign = sigma_data, cosine, sign

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Its own sample and time for x = cos(t) x0 + sin(t) e, (B, ...), and t (B,)."""
        time = t * (2 / math.pi) if self.cosine else t.tan().log() / 4
        return x / expand_time(self._norm(t), x), time

    def velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """F of its output, by `F = (cos(t) x - D) / sin t` and EDM's D."""
        t = expand_time(t, x)
        norm, sd = self._norm(t), self.sigma_data
        skipped = t.cos() * t.sin() * (1 - sd**2) / norm**2
        return skipped * x + self.sign * sd / norm * output

    def _norm(self, t: Tensor) -> Tensor:
        """The standard deviation of `cos(t) x0 + sin(t) e` with x0 of `sigma_data`."""
        return (t.sin() ** 2 + (self.sigma_data * t.cos()) ** 2).sqrt()
