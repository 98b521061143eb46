"""Between standardised log-mels and sound: a vocoder, and files to listen to and look at."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.audio import vocoder
from modalities.audio.mel import MelSettings, log_mel
from scm_core.base.errors import UserError
from scm_core.contract.spec import SIGMA_DATA, Codec
from scm_core.data.media import image_grid, spectrogram_images, write_png, write_sound


class AudioCodec(Codec):
    """Media are waveforms float32 (B, samples) in [-1, 1]; samples x are (B, 1, mels, frames).

    ``exact`` is False: a vocoder loses something, so real sounds through it are the best there is.
    """

    exact = False

    def __init__(
        self, config: vocoder.DecoderConfig, mel: MelSettings, statistics: dict[str, Any]
    ) -> None:
        """Keep the statistics that the data module measured and load the vocoder.

        Raises UserError when ``mel`` is not what the statistics were measured with.
        """
        if statistics["mel"] != asdict(mel):
            was = ", ".join(f"{key}={value:g}" for key, value in statistics["mel"].items())
            raise UserError(f"This model was trained on mels with {was}: give mel.* the same.")
        self.mel = mel
        self.mean, self.std = (
            torch.tensor(statistics[key], dtype=torch.float32).view(-1, 1)
            for key in ("mean", "std")
        )
        self.vocoder = vocoder.build(config, mel)

    @property
    def sample_rate(self) -> int:
        """Of the media, in Hz."""
        return self.mel.sample_rate

    def seconds(self, media: Tensor) -> float:
        """How long each of the sounds (B, samples) lasts."""
        return media.shape[-1] / self.sample_rate

    def encode(self, media: Tensor) -> Tensor:
        """Waveforms (B, samples) to x float32 (B, 1, mels, samples // hop)."""
        mean, std = self.mean.to(media.device), self.std.to(media.device)
        return ((log_mel(media, self.mel) - mean) / std * SIGMA_DATA)[:, None]

    def decode(self, x: Tensor) -> Tensor:
        """Samples x to waveforms (B, frames * hop); one that would clip is made quieter."""
        waveform = self.vocoder(self.traced(x))
        return waveform / waveform.abs().amax(1, keepdim=True).clamp(min=1)

    def traced(self, x: Tensor) -> Tensor:
        """Samples x to log-mels (B, mels, frames), which is all but the vocoder."""
        mean, std = self.mean.to(x.device), self.std.to(x.device)
        return x[:, 0].float() / SIGMA_DATA * std + mean

    def save(self, media: Tensor, path: str | Path) -> Path:
        """Write one waveform (samples,) as ``path``.wav, .flac and .png; return the first."""
        picture = spectrogram_images(log_mel(media[None], self.mel))[0]
        write_png(picture.permute(1, 2, 0), f"{path}.png")
        write_sound(media, f"{path}.flac", self.sample_rate)
        return write_sound(media, f"{path}.wav", self.sample_rate)

    def sound(self, media: Tensor) -> tuple[Tensor, int]:
        """All sounds of a batch one after the other, float32 (samples,), and their rate in Hz."""
        return media.flatten(), self.sample_rate

    def preview(self, media: Tensor) -> Tensor:
        """One picture of the whole batch: a grid of spectrograms, uint8 (H, W, 3)."""
        return image_grid(spectrogram_images(log_mel(media, self.mel)))
