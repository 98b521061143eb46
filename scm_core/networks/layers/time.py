"""Time embeddings that keep dF/dt tame (arXiv 2410.11081, section 4.1).

The noise condition is t itself, through a positional embedding of small scale: a Fourier embedding
of scale 16, or of `log tan t`, makes |dF/dt| grow by one to three orders of magnitude near pi/2.
t, its embedding and w(t) stay in float32 or better, whatever autocast says.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def positional_embedding(position: Tensor, channels: int, period: float = 10_000.0) -> Tensor:
    """`[cos(position f), sin(position f)]` with `channels / 2` frequencies f from 1 to 1/period."""
    half = channels // 2
    exponent = torch.arange(half, device=position.device, dtype=position.dtype) / half
    angle = position.unsqueeze(-1) * torch.exp(-math.log(period) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """t (B,) to (B, channels), through a two-layer perceptron."""

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(width, channels)
        self.second = nn.Linear(channels, channels)

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            hidden = self.first(positional_embedding(t, self.width))
            return self.second(nn.functional.silu(hidden))


class LearnedWeight(nn.Module):
    """w(t), the learned log-weight of a loss: one linear head on the time embedding, (B,) to (B,).

    It starts at 0 (weight 1) and balances the loss over t (arXiv 2410.11081, equation 6).
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            return self.head(positional_embedding(t, self.width)).squeeze(-1)
