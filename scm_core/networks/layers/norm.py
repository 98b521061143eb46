"""Normalisation: the adaptive double norm of sCM (arXiv 2410.11081, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def own_dtype(x: Tensor) -> torch.autocast:
    """A context in which autocast leaves the dtype of x alone.

    CUDA's autocast normalises and resizes in float32, and hands float32 on, of which every later
    layer reads and writes twice the bytes. The kernels themselves sum in float32 all the same.
    """
    return torch.autocast(x.device.type, enabled=False)


def pixel_norm(x: Tensor, eps: float = 1e-4) -> Tensor:
    """`x / sqrt(mean over the last dimension of x^2 + eps)` (Karras et al. 2018, section 4.2)."""
    return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()


class RMSNorm(nn.RMSNorm):
    """torch's RMS norm in the dtype of its input, its gain too: else no fused kernel runs."""

    def forward(self, x: Tensor) -> Tensor:
        with own_dtype(x):
            gain = self.weight.to(x.dtype)
            return functional.rms_norm(x, self.normalized_shape, gain, self.eps)


class GroupNorm(nn.GroupNorm):
    """torch's group norm in the dtype of its input, which CUDA's kernel wants of both gains."""

    def forward(self, x: Tensor) -> Tensor:
        gains = (p if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        with own_dtype(x):
            return functional.group_norm(x, self.num_groups, *gains, self.eps)


class AdaptiveNorm(nn.Module):
    """Adaptive double normalisation: `norm(x) * pnorm(scale) + pnorm(shift)`.

    Scale and shift come from the condition's embedding; pixel-normalising them keeps the tangent
    stable where a plain adaptive norm lets it explode. Tokens are (B, N, C), the embedding (B, E).
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.modulation = Modulation(channels, embedding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = (part.unsqueeze(1).to(x.dtype) for part in self.modulation(embedding))
        with own_dtype(x):
            return torch.addcmul(shift, self.norm(x), scale)


class Modulation(nn.Module):
    """An embedding (B, E) to a pixel-normalised scale and shift, each (B, C)."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, 2 * channels)
        # scale starts at 1 for every channel: pixel norm maps a constant vector to ones.
        nn.init.ones_(self.linear.bias[:channels].data)
        nn.init.zeros_(self.linear.bias[channels:].data)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.linear(embedding).chunk(2, dim=-1)
        return pixel_norm(scale), pixel_norm(shift)
