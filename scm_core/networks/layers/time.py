"""Time embeddings that keep dF/dt tame (arXiv 2410.11081, section 4.1).

The noise condition is t itself, through a positional embedding of small scale: a Fourier embedding
of scale 16, or of `log tan t`, makes |dF/dt| grow by one to three orders of magnitude near pi/2.
t, its embedding and w(t) stay in float32 or better, whatever autocast says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scm_core.method.weighting import positional_embedding


class TimeEmbedding(nn.Module):
    """t (B,) to (B, channels), through a two-layer MLP."""

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(width, channels)
        self.second = nn.Linear(channels, channels)

    def forward(self, t: Tensor) -> Tensor:
        with torch.autocast(t.device.type, enabled=False):
            hidden = self.first(positional_embedding(t, self.width))
            return self.second(nn.functional.silu(hidden))
