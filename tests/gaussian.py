"""The exact teacher and student for Gaussian data x0 ~ N(m, S^2), in float64 (closed forms)."""

import torch
from torch import Tensor

from scm_core.method.trigflow import expand_time


class Gaussian:
    """PF-ODE, flow map and networks F of one-dimensional Gaussian data, elementwise."""

    def __init__(self, mean: float, std: float, sigma_data: float) -> None:
        self.mean, self.std, self.sigma_data = mean, std, sigma_data

    def variance(self, t: Tensor) -> Tensor:
        return self.std**2 * t.cos() ** 2 + self.sigma_data**2 * t.sin() ** 2

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt of the PF-ODE, which is `sigma_data F` of a perfect teacher."""
        t = expand_time(t, x)
        slope = (self.sigma_data**2 - self.std**2) * t.sin() * t.cos() / self.variance(t)
        return -self.mean * t.sin() + slope * (x - self.mean * t.cos())

    def flow_map(self, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """Where the PF-ODE carries x from time t to time u."""
        t, u = expand_time(t, x), expand_time(u, x)
        ratio = (self.variance(u) / self.variance(t)).sqrt()
        return self.mean * u.cos() + ratio * (x - self.mean * t.cos())

    def teacher(self, x: Tensor, t: Tensor, condition=None) -> Tensor:
        """F(x_t / sigma_data, t) of the perfect diffusion model."""
        return self.velocity(x * self.sigma_data, t) / self.sigma_data

    def student(self, x: Tensor, t: Tensor, condition=None) -> Tensor:
        """F whose consistency function is the flow map to 0."""
        x_t = x * self.sigma_data
        end = self.flow_map(x_t, t, torch.zeros_like(t))
        t = expand_time(t, x)
        return (t.cos() * x_t - end) / (self.sigma_data * t.sin())
