"""The network of notes: the core's, which is also shown the harmonics that it is asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modalities.audio.mel import MelSettings, filterbank
from scm_core.contract.fields import Condition, Label, Schema
from scm_core.networks import backbones

REFERENCE_PITCH, REFERENCE_HZ = 69, 440.0  # MIDI's number of the concert pitch


def build(
    config: backbones.BackboneConfig, mel: MelSettings, shape: tuple[int, ...], schema: Schema
) -> nn.Module:
    """The core's network, for notes within `Harmonics`; UserError for what does not fit."""
    if "pitch" not in schema:
        return backbones.build(config, shape, schema)
    channels, *grid = shape
    network = backbones.build(config, (channels + 2, *grid), schema)
    return Harmonics(network, mel, schema["pitch"])


class Harmonics(nn.Module):
    """F(x_t / sigma_data, t, condition) of a network that sees two channels more, (B, 3, mels, T).

    One is where the harmonics of ``condition["pitch"]`` lie among the mel bins, one how high a bin
    lies. A convolution knows neither by itself, and a label embedding, which modulates all bins
    alike, cannot say it: how far from the pitch a sound ends is decided near t = pi/2, where the
    label is all that there is to go by.
    """

    def __init__(self, network: nn.Module, mel: MelSettings, pitch: Label) -> None:
        """Wrap a network for samples of three channels; no parameter is added."""
        super().__init__()
        self.network = network
        self.register_buffer("harmonics", harmonics(mel, pitch), persistent=False)
        height = torch.linspace(-1.5, 1.5, mel.mels).view(1, 1, -1, 1)
        self.register_buffer("height", height, persistent=False)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Of x (B, 1, mels, frames) and t (B,), in x's shape; without a condition all is null."""
        batch, _, _, frames = x.shape
        pitch = condition["pitch"] if condition else torch.full((batch,), -1, device=x.device)
        lines = self.harmonics[pitch][:, None, :, None].expand(-1, -1, -1, frames)
        height = self.height.expand(batch, -1, -1, frames)
        seen = torch.cat([x, lines.to(x.dtype), height.to(x.dtype)], dim=1)
        return self.network(seen, t, condition)[:, :1]


def harmonics(mel: MelSettings, pitch: Label) -> Tensor:
    """The log-mels of equally loud harmonics of each pitch, of mean 0 and std 1 over the bins.

    Float32 (classes + 1, mels); the null pitch, the last row, is 0.
    """
    number = torch.arange(pitch.classes, dtype=torch.float64) + pitch.first
    lowest = REFERENCE_HZ * 2 ** ((number - REFERENCE_PITCH) / 12) * mel.n_fft / mel.sample_rate
    bins = torch.arange(mel.n_fft // 2 + 1, dtype=torch.float64)
    order = (bins / lowest[:, None]).round().clamp(min=1)  # of the harmonic nearest to each bin
    # A harmonic is as wide as a Hann window's main lobe, about one bin's standard deviation.
    lines = torch.exp(-((bins - order * lowest[:, None]) ** 2) / 2)
    log_mels = (lines @ filterbank(mel).double().T + 1e-2).log()
    spread = log_mels.std(1, keepdim=True)
    rows = ((log_mels - log_mels.mean(1, keepdim=True)) / spread).float()
    return torch.cat([rows, rows.new_zeros(1, mel.mels)])
