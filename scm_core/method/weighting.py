"""The learned balance of a loss over t."""

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


def per_sample(error: Tensor) -> Tensor:
    """The mean square over everything but the batch, `|error|^2 / D`, (B,) in float32 or better."""
    return error.flatten(1).square().mean(dim=1)


def learned(loss: Tensor, weight: Tensor) -> Tensor:
    """`e^w L - w`, minimal in w where `e^w = 1 / L` (arXiv 2410.11081, equation 6); (B,) each."""
    return weight.exp() * loss - weight
