"""What the audio tests share."""

import math
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from modalities.audio.data import AudioData, AudioDataModule
from modalities.audio.mel import MelSettings

NOTES = Path(__file__).parent / "assets" / "audio"  # five notes each of two instruments
RATE = 22050


def tone(frequency: float = 440.0, seconds: float = 1.0, rate: int = RATE) -> Tensor:
    """A sine of amplitude a half."""
    return 0.5 * torch.sin(2 * math.pi * frequency * torch.arange(round(seconds * rate)) / rate)


def pitch(sound: Tensor, rate: int = RATE) -> float:
    """MIDI number of the fundamental, 110 to 1100 Hz, by the peak of the autocorrelation."""
    spectrum = torch.fft.rfft(sound.double(), 2 * len(sound))
    correlation = torch.fft.irfft(spectrum.abs().square())
    first = rate // 1100
    lag = first + int(correlation[first : rate // 110].argmax())
    return 69 + 12 * math.log2(rate / lag / 440)


def encode(path: Path, sound: Tensor, codec: str, rate: int, layout: str = "mono") -> Path:
    """Write a sound of `RATE` by one of PyAV's codecs, resampled to ``rate``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = av.AudioFrame.from_ndarray(sound.numpy()[None].astype(np.float32), "fltp", "mono")
    frame.sample_rate = RATE
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(stream.format.name, layout, rate)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            part.pts = None
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def prepared(cache: Path, mel: MelSettings | None = None, **config) -> AudioDataModule:
    """A data module that is ready to be read, with its cache in a folder of the test's."""
    data = AudioDataModule(AudioData(**config), mel or MelSettings(), cache)
    data.setup()
    return data
