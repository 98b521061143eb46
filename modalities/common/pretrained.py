"""Autoencoders of diffusers, for pictures and clips, by hub name or from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.base.arguments import place
from scm_core.base.errors import UserError, first_line
from scm_core.contract.spec import SIGMA_DATA, Autoencoder
from scm_core.data.batches import channelwise

NEEDS = "decoder.pretrained needs the package diffusers: pip install 'scm-core[diffusers]'"


@dataclass
class PretrainedConfig:
    """``pretrained``: an autoencoder's name on the hub, as OWNER/NAME or OWNER/NAME/SUBFOLDER, or
    its folder. Samples are then its latents; without one they are the pixels."""

    pretrained: str | None = place()


class Pretrained(Autoencoder):
    """A diffusers autoencoder between samples (B, C, *grid) of std sigma_data and its latents.

    One for pictures codes a clip's frames one by one. Grey pictures are shown to it in colour.
    """

    pretrained = True

    def __init__(
        self, network: nn.Module, shape: tuple[int, ...], statistics: dict[str, Any]
    ) -> None:
        """For samples of ``shape`` (C, *grid), whose pixels have these mean and std."""
        super().__init__()
        self.network = network
        self.mean, self.std = channelwise(statistics, len(shape) - 1)
        self.grey = shape[0] == 1
        self.by_frame = len(shape) == 4 and all(p.ndim < 5 for p in network.parameters())

    def encode(self, x: Tensor) -> Tensor:
        """Samples to latents (B, latent channels, *coarser grid): their distribution's mode."""
        pixels = x / SIGMA_DATA * self.std.to(x.device) + self.mean.to(x.device)
        pixels = pixels.repeat_interleave(3, 1) if self.grey else pixels
        try:
            z = self.network.encode(self._frames(pixels), return_dict=False)[0]
        except (RuntimeError, ValueError) as error:
            sizes = " x ".join(map(str, x.shape[1:]))
            raise UserError(
                f"the pretrained autoencoder cannot take {sizes}: {first_line(error)}"
            ) from error
        return self._clips(z if isinstance(z, Tensor) else z.mode(), len(x))

    def decode(self, z: Tensor) -> Tensor:
        """Latents to samples."""
        more = {}
        if self.network.config.get("timestep_conditioning"):  # a denoiser; there is nothing to do
            more["temb"] = torch.zeros(len(z), device=z.device)
        pixels = self.network.decode(self._frames(z), return_dict=False, **more)[0]
        pixels = self._clips(pixels, len(z))
        pixels = pixels.mean(1, keepdim=True) if self.grey else pixels
        return (pixels - self.mean.to(z.device)) / self.std.to(z.device) * SIGMA_DATA

    def _frames(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1) if self.by_frame else x

    def _clips(self, x: Tensor, clips: int) -> Tensor:
        return x.unflatten(0, (clips, -1)).transpose(1, 2) if self.by_frame else x


def load(name: str, shape: tuple[int, ...], statistics: dict[str, Any]) -> Pretrained:
    """The autoencoder of that name or in that folder, for samples of ``shape``; no pickle is read.

    Raises UserError when there is none, it cannot be read, or it takes other channels.
    """
    try:
        from diffusers import AutoencoderKL
        from diffusers.models import autoencoders
    except ImportError:
        raise UserError(NEEDS) from None
    folder = Path(name)
    place, subfolder = (str(folder), None) if folder.exists() else _on_the_hub(name)
    try:
        kind = AutoencoderKL.load_config(place, subfolder=subfolder).get("_class_name")
        # Not by diffusers' AutoModel, which imports what the files name.
        build = getattr(autoencoders, str(kind), None)
        network = build and build.from_pretrained(
            place, subfolder=subfolder, use_safetensors=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers and its hub raise all kinds
        raise UserError(f"decoder.pretrained={name} cannot be read: {first_line(error)}") from error
    if not (hasattr(network, "encode") and hasattr(network, "decode")):
        raise UserError(f"decoder.pretrained={name} is a {kind}, which is no autoencoder")
    channels = network.config.in_channels
    if kind == "AutoencoderKLWan":  # which folds pixels into channels itself; others count before
        channels //= (network.config.get("patch_size") or 1) ** 2
    if shape[0] not in (1, channels):
        raise UserError(
            f"decoder.pretrained={name} takes {channels} channels, samples have {shape[0]}"
        )
    return Pretrained(network, shape, statistics)


def _on_the_hub(name: str) -> tuple[str, str | None]:
    owner, _, rest = name.partition("/")
    repository, _, subfolder = rest.partition("/")
    return f"{owner}/{repository}".rstrip("/"), subfolder or None
