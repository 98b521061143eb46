"""Log-mel spectrograms in the convention of HiFi-GAN (Kong et al. 2020, arXiv 2010.05646)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from scm_core.base.errors import UserError

FLOOR = 1e-5  # the mel magnitude below which everything is silence; its logarithm is -11.5


@dataclass(unsafe_hash=True)  # OmegaConf makes what is frozen unchangeable by users too
class MelSettings:
    """What a mel spectrogram is made with; a vocoder fits one setting alone.

    ``sample_rate``, ``low`` and ``high`` (the band's ends) are in Hz; ``n_fft`` (also the length of
    the window) and ``hop`` in samples.
    """

    sample_rate: int = 22050
    n_fft: int = 1024
    hop: int = 256
    mels: int = 80
    low: float = 0.0
    high: float = 8000.0

    def check(self, frames: int) -> None:
        """Raise UserError where no spectrogram of so many frames can be made with these."""
        if min(self.sample_rate, self.n_fft, self.hop, self.mels) < 1:
            raise UserError("mel.sample_rate, mel.n_fft, mel.hop and mel.mels must be positive.")
        if self.sample_rate % 2 or self.n_fft % 2 or self.hop % 2 or self.hop > self.n_fft:
            raise UserError(
                "mel.sample_rate, mel.n_fft and mel.hop must be even, and the hop at most n_fft."
            )
        if not 0 <= self.low < self.high <= self.sample_rate / 2:
            raise UserError(
                f"mel.low={self.low:g} and mel.high={self.high:g} must rise within 0 and half of "
                f"mel.sample_rate={self.sample_rate}."
            )
        if frames * self.hop <= (self.n_fft - self.hop) // 2:
            raise UserError(
                f"data.frames={frames} of mel.hop={self.hop} samples are shorter than the half "
                f"window around them, of mel.n_fft={self.n_fft}: raise data.frames"
            )


def log_mel(waveform: Tensor, settings: MelSettings) -> Tensor:
    """Waveforms (B, samples) in [-1, 1] to ln(max(mel, 1e-5)), float32 (B, mels, samples // hop).

    Magnitudes, a Hann window, Slaney's mel scale with areas of one; frame i is centred on sample
    (i + 1/2) * hop. A waveform must be longer than half of n_fft - hop.
    """
    pad = (settings.n_fft - settings.hop) // 2
    spectrum = torch.stft(
        functional.pad(waveform[:, None], (pad, pad), mode="reflect")[:, 0],
        settings.n_fft,
        settings.hop,
        window=torch.hann_window(settings.n_fft, device=waveform.device),
        center=False,
        return_complex=True,
    )
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    return (filterbank(settings).to(waveform.device) @ magnitude).clamp_(min=FLOOR).log_()


@functools.cache
def filterbank(settings: MelSettings) -> Tensor:
    """The mel filters, float32 (mels, n_fft // 2 + 1), as librosa makes them."""
    filters = torchaudio.functional.melscale_fbanks(
        settings.n_fft // 2 + 1,
        settings.low,
        settings.high,
        settings.mels,
        settings.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return filters.T.contiguous()
