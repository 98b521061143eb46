"""The mel front end: HiFi-GAN's convention, computed once more with numpy."""

import math

import numpy as np
import pytest
import torch
from sounds import NOTES, RATE, tone

from modalities.audio.mel import MelSettings, filterbank, log_mel
from modalities.audio.recordings import decode_file
from scm_core.base.errors import UserError


def slaney(hertz: float) -> float:
    """Slaney's mel scale: linear to 1 kHz, logarithmic above."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def reference(sound: np.ndarray, n_fft: int, hop: int, mels: int, high: float) -> np.ndarray:
    """Log-mels as the published code of HiFi-GAN makes them, frame by frame."""
    grid = np.linspace(0, 15 * high / 1000 if high < 1000 else slaney(high), mels + 2)
    edges = np.where(grid < 15, grid * 200 / 3, 1000 * np.exp((grid - 15) * math.log(6.4) / 27))
    bins = np.arange(n_fft // 2 + 1) * RATE / n_fft
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(sound, (n_fft - hop) // 2, mode="reflect")
    frames = [
        np.abs(np.fft.rfft(window * padded[start : start + n_fft]))
        for start in range(0, len(padded) - n_fft + 1, hop)
    ]
    return np.log(np.maximum(filters @ np.stack(frames, 1), 1e-5))


@pytest.mark.parametrize(
    ("n_fft", "hop", "mels", "high"), [(1024, 256, 80, 8000), (512, 128, 64, 11025)]
)
def test_log_mels_are_those_of_hifigan(n_fft, hop, mels, high):
    sound = decode_file(NOTES / "trumpet" / "60.flac", RATE)
    settings = MelSettings(n_fft=n_fft, hop=hop, mels=mels, high=high)
    ours, theirs = (
        log_mel(sound[None], settings)[0],
        reference(sound.numpy(), n_fft, hop, mels, high),
    )
    assert ours.shape == theirs.shape == (mels, len(sound) // hop)
    gap = np.abs(ours.numpy() - theirs)
    assert gap[theirs > -9].max() < 1e-2 and gap.max() < 0.2  # 1e-9 under the root, near the floor


def test_a_tone_is_where_its_frequency_is_and_silence_at_the_floor():
    settings = MelSettings()
    mels = log_mel(torch.stack([tone(440), tone(3000), torch.zeros(RATE)]), settings)
    centres = (filterbank(settings) * torch.arange(513)).sum(1) / filterbank(settings).sum(1)
    heard = centres[mels[:2].mean(2).argmax(1)] * RATE / 1024
    assert (heard - torch.tensor([440, 3000])).abs().max() < 60
    assert mels[2].eq(math.log(1e-5)).all() and mels.dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"high": 12000}, "mel.high=12000 must rise within 0 and half of mel.sample_rate=22050"),
        ({"low": 9000}, "mel.low=9000"),
        ({"mels": 0}, "must be positive"),
        ({"hop": 2048}, "must be even, and the hop at most n_fft"),
        ({"n_fft": 1023}, "must be even"),
    ],
)
def test_settings_that_make_no_spectrogram_are_refused(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        MelSettings(**wrong).check(64)


def test_a_clip_is_longer_than_what_lies_around_its_windows():
    MelSettings().check(2)
    with pytest.raises(UserError, match="data.frames=1 of mel.hop=256 samples are shorter"):
        MelSettings().check(1)
