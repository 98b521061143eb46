"""A small autoencoder of clips: causal in time, 4 times coarser in time, height and width."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from modalities.common.pretrained import PretrainedConfig
from scm_core.base.errors import UserError
from scm_core.contract.config import AutoencoderConfig
from scm_core.contract.spec import Autoencoder
from scm_core.networks.layers.patch import fold, unfold

FIRST, SECOND = (4, 2, 2), (1, 2, 2)  # what is folded into channels, one after the other
STRIDE = (4, 4, 4)


@dataclass
class DecoderConfig(AutoencoderConfig, PretrainedConfig):
    """The autoencoder, if it is no pretrained one: ``latents`` channels, ``width`` of its layers,
    ``blocks`` at each of its two resolutions; and the stage that trains it. ``lossless`` MP4s keep
    every pixel of a sample, which fewer players can show."""

    latents: int = 16
    width: int = 64
    blocks: int = 2
    lossless: bool = False


class ChannelNorm(nn.LayerNorm):
    """A layer norm over each cell of (B, C, T, H, W): causal, as a group norm is not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class CausalBlock(nn.Module):
    """A convolution within frames, then one over this frame and the two before it, and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_space, self.norm_time = ChannelNorm(channels), ChannelNorm(channels)
        self.space = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(channels, channels, (3, 1, 1))
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.space(functional.silu(self.norm_space(x)))
        hidden = functional.silu(self.norm_time(hidden))
        return x + self.time(functional.pad(hidden, (0, 0, 0, 0, 2, 0)))


class CausalAutoencoder(Autoencoder):
    """Clips (B, C, T, H, W) of std sigma_data to latents (B, latents, T/4, H/4, W/4) and back.

    What a latent frame says depends on no later frame than its own four, so that clips of any
    length can be coded as they come.
    """

    def __init__(self, channels: int, latents: int, width: int, blocks: int) -> None:
        super().__init__()
        fine, coarse = width, 2 * width
        folded = channels * 16
        self.encoder = nn.Sequential(
            Folded(FIRST, folded, fine),
            *[CausalBlock(fine) for _ in range(blocks)],
            Folded(SECOND, 4 * fine, coarse),
            *[CausalBlock(coarse) for _ in range(blocks)],
            ChannelNorm(coarse),
            nn.Conv3d(coarse, latents, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv3d(latents, coarse, (1, 3, 3), padding=(0, 1, 1)),
            *[CausalBlock(coarse) for _ in range(blocks)],
            Unfolded(SECOND, coarse, 4 * fine),
            *[CausalBlock(fine) for _ in range(blocks)],
            ChannelNorm(fine),
            nn.SiLU(),
            Unfolded(FIRST, fine, folded),
        )

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to latents; UserError for sizes that do not divide."""
        if any(size % stride for size, stride in zip(x.shape[2:], STRIDE, strict=True)):
            sizes = " x ".join(map(str, x.shape[2:]))
            raise UserError(
                f"clips of {sizes} are not divisible by 4: change data.frames or data.size"
            )
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Latents to (B, C, T, H, W)."""
        return self.decoder(z)


class Folded(nn.Module):
    """Cells into channels, then a convolution within frames."""

    def __init__(self, patch: tuple[int, int, int], inputs: int, outputs: int) -> None:
        super().__init__()
        self.patch = patch
        self.convolution = nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(fold(x, self.patch))


class Unfolded(nn.Module):
    """A convolution within frames, then channels into cells."""

    def __init__(self, patch: tuple[int, int, int], inputs: int, outputs: int) -> None:
        super().__init__()
        self.patch = patch
        self.convolution = nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return unfold(self.convolution(x), self.patch)


def build(config: DecoderConfig, shape: tuple[int, ...]) -> Autoencoder:
    """The autoencoder of clips of ``shape`` (C, T, H, W)."""
    return CausalAutoencoder(shape[0], config.latents, config.width, config.blocks)
