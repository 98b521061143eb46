"""Models of diffusers, for pictures and clips, by hub name or from a folder.

An autoencoder alone, or a pipeline: its network is a teacher, its autoencoder makes the samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scm_core.base.arguments import place
from scm_core.base.errors import UserError, first_line
from scm_core.contract.fields import Label, Schema
from scm_core.contract.spec import SIGMA_DATA, Autoencoder
from scm_core.data.batches import channelwise
from scm_core.networks.pretrained import Adapter, Pipeline
from scm_core.networks.pretrained.adapter import classes

NEEDS = "decoder.pretrained needs the package diffusers: pip install 'scm-core[diffusers]'"


@dataclass
class PretrainedConfig:
    """``pretrained``: an autoencoder's name on the hub, as OWNER/NAME or OWNER/NAME/SUBFOLDER, or
    its folder. Samples are then its latents; without one they are the pixels."""

    pretrained: str | None = place()


class Pretrained(Autoencoder):
    """A diffusers autoencoder between samples (B, C, *grid) of std sigma_data and its latents.

    One for pictures codes a clip's frames one by one, and one for clips, where it is a pipeline's,
    a picture as a clip's only frame. Grey pictures are shown to it in colour.
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
        of_clips = any(p.ndim == 5 for p in network.parameters())
        self.by_frame = len(shape) == 4 and not of_clips
        self.one_frame = False

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
        x = x.unsqueeze(2) if self.one_frame else x
        return x.transpose(1, 2).flatten(0, 1) if self.by_frame else x

    def _clips(self, x: Tensor, clips: int) -> Tensor:
        x = x.squeeze(2) if self.one_frame else x
        return x.unflatten(0, (clips, -1)).transpose(1, 2) if self.by_frame else x


class OfPipeline(Pretrained):
    """A pipeline's autoencoder, whose latents its network sees as its config normalises them."""

    def __init__(
        self, network: nn.Module, shape: tuple[int, ...], statistics: dict[str, Any]
    ) -> None:
        super().__init__(network, shape, statistics)
        self.one_frame = len(shape) == 3 and any(p.ndim == 5 for p in network.parameters())
        self.folded = hasattr(network, "bn")  # FLUX.2: 2 x 2 cells are the channels of one
        self.normalisation = _normalisation(network)

    def encode(self, x: Tensor) -> Tensor:
        z = super().encode(x)
        return functional.pixel_unshuffle(z, 2) if self.folded else z

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(functional.pixel_shuffle(z, 2) if self.folded else z)


def _normalisation(network: nn.Module) -> dict[str, list[float]]:
    """Mean and std of its latents per channel, as its weights or else its config state them."""
    config = network.config
    if hasattr(network, "bn"):
        std = (network.bn.running_var + config.batch_norm_eps).sqrt()
        return {"mean": network.bn.running_mean.tolist(), "std": std.tolist()}
    channels = config.get("latent_channels") or config.get("z_dim") or 1
    mean = [config.get("shift_factor") or 0.0] * channels
    std = [1.0] * channels
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, std = config.latents_mean, config.latents_std
    elif "latents_mean" in (weights := dict(network.named_buffers())):  # LTX's
        mean, std = weights["latents_mean"].tolist(), weights["latents_std"].tolist()
    scaling = config.get("scaling_factor") or 1.0
    return {"mean": list(mean), "std": [each / scaling for each in std]}


def of_pipeline(name: str, shape: tuple[int, ...], statistics: dict[str, Any]) -> OfPipeline | None:
    """The autoencoder of a pipeline, None where it has none: its samples are pixels."""
    pipeline = Pipeline.open(name)
    if pipeline.vae is None:
        return None
    vae = str(pipeline.folder / "vae")
    return load(vae, shape, statistics, OfPipeline, f"pretrained={name}: its vae")


def backbone(name: str, schema: Schema, guidance: float) -> Adapter:
    """The network of a pipeline as a backbone under these fields of a condition.

    Raises UserError where it was trained on other classes, or guidance needs a null that it lacks.
    """
    pipeline = Pipeline.open(name)
    found = pipeline.adapter(schema)
    known, label = classes(found.network), schema.get("label")
    if found.family.label and known and isinstance(label, Label):
        why = f"pretrained={name} knows {known} classes, the data have {label.classes}"
        if label.classes > known:
            raise UserError(why)
        has_null = pipeline.kind == "DiTTransformer2DModel" or label.classes == known - 1
        if not has_null and guidance != 1:
            raise UserError(f"{why}, and none is left for no class: give student.guidance=1")
    return found


def load(
    name: str,
    shape: tuple[int, ...],
    statistics: dict[str, Any],
    wrapper: type[Pretrained] = Pretrained,
    called: str = "",
) -> Pretrained:
    """The autoencoder of that name or in that folder, for samples of ``shape``; no pickle is read.

    ``called`` is what errors call it. Raises UserError when there is none, it cannot be read, or it
    takes other channels.
    """
    called = called or f"decoder.pretrained={name}"
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
        raise UserError(f"{called} cannot be read: {first_line(error)}") from error
    if not (hasattr(network, "encode") and hasattr(network, "decode")):
        raise UserError(f"{called} is a {kind}, which is no autoencoder")
    known = network.config  # Qwen-Image's has the other name
    channels = known.get("in_channels") or known.get("input_channels")
    if not channels:
        raise UserError(f"{called} is a {kind}, which takes no pictures")
    if kind == "AutoencoderKLWan":  # which folds pixels into channels itself; others count before
        channels //= (network.config.get("patch_size") or 1) ** 2
    if shape[0] not in (1, channels):
        raise UserError(f"{called} takes {channels} channels, samples have {shape[0]}")
    return wrapper(network, shape, statistics)


def _on_the_hub(name: str) -> tuple[str, str | None]:
    owner, _, rest = name.partition("/")
    repository, _, subfolder = rest.partition("/")
    return f"{owner}/{repository}".rstrip("/"), subfolder or None
