"""Normalisation: the adaptive double norm of sCM (arXiv 2410.11081, section 4.1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def pixel_norm(x: Tensor, eps: float = 1e-4) -> Tensor:
    """`x / sqrt(mean over the last dimension of x^2 + eps)` (Karras et al. 2018, section 4.2)."""
    return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()


class RMSNorm(nn.RMSNorm):
    """torch's RMS norm, its gain in the input's dtype: under autocast else no fused kernel runs."""

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight.to(x.dtype)
        return functional.rms_norm(x, self.normalized_shape, gain, self.eps)


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
        scale, shift = self.modulation(embedding)
        return self.norm(x) * scale.unsqueeze(1) + shift.unsqueeze(1)


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
