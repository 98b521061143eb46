"""The distribution over t that training draws from (arXiv 2410.11081, section 3.1 and table 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogNormalProposal:
    """`t = atan(e^tau / sigma_data)` with `tau ~ N(mean, std^2)`; `e^tau` is EDM's sigma."""

    mean: float
    std: float
    sigma_data: float = 0.5

    def sample(
        self, n: int, device: torch.device | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """`n` times in (0, pi/2), float32 (n,)."""
        tau = torch.randn(n, device=device, generator=generator) * self.std + self.mean
        return (tau.exp() / self.sigma_data).atan()
