"""Instruments that say whether a sound is what was asked for: its pitch, and its class."""

from __future__ import annotations

from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from modalities.audio import crepe
from modalities.audio.backbone import REFERENCE_HZ, REFERENCE_PITCH
from modalities.audio.mel import MelSettings, log_mel
from scm_core.contract.fields import Condition
from scm_core.contract.spec import SIGMA_DATA, DataModule, Scorer
from scm_core.evaluation import classifier

VERSION = 2  # of the classifier and its training: another one scores otherwise
STEPS, EPOCHS, PEAK = 400, 40, 4e-3  # training ends at the first of steps and epochs


class NoteScorer(Scorer):
    """Scores sounds by each field of their condition, 0. or 1., (B,): pitch by CREPE, else a class.

    A note gets {"pitch_accuracy", "family_accuracy"}, a recording {"class_accuracy"}. Media are
    waveforms float32 (B, samples) at the rate of the data module's mels.
    """

    def __init__(self, data: DataModule, cache: Path = classifier.CACHE) -> None:
        """Load the instruments, training a classifier on first use of the data set."""
        self.scorers: list[Scorer] = []
        for key, field in data.condition.items():
            if key == "pitch":
                self.scorers.append(PitchScorer(data.statistics["mel"]["sample_rate"], field.first))
            else:
                self.scorers.append(ClassScorer(data, key, cache))

    def __call__(self, media: Tensor, condition: Condition) -> dict[str, Tensor]:
        """All scores, by name."""
        return {k: v for score in self.scorers for k, v in score(media, condition).items()}


class PitchScorer(Scorer):
    """Whether sounds are within half a semitone of ``condition["pitch"]``, by CREPE's median."""

    def __init__(self, sample_rate: int, lowest: int) -> None:
        """For media of that rate in Hz; pitch 0 has the MIDI number ``lowest``."""
        self.resample = torchaudio.transforms.Resample(sample_rate, crepe.SAMPLE_RATE)
        self.network, self.lowest = crepe.Crepe(), lowest

    @torch.inference_mode()
    def __call__(self, media: Tensor, condition: Condition) -> dict[str, Tensor]:
        """{"pitch_accuracy": (B,)}."""
        self.network.to(media.device)
        hertz = crepe.median_frequency(self.network, self.resample.to(media.device)(media))
        number = REFERENCE_PITCH + 12 * (hertz / REFERENCE_HZ).log2()
        asked = condition["pitch"].to(media.device) + self.lowest
        return {"pitch_accuracy": ((number - asked).abs() < 0.5).float()}


class ClassScorer(Scorer):
    """Whether a classifier sees the asked class of one field of the condition.

    It is trained once, seeded, on the log-mels of the data module's training split, and kept under
    ``cache``. How often it is right about held-out sounds is what they score.
    """

    def __init__(self, data: DataModule, key: str, cache: Path) -> None:
        """Load or train the classifier of field ``key`` of a data module that has been set up."""
        self.key, self.name = key, "class" if key == "label" else key
        self.mel = MelSettings(**data.statistics["mel"])
        self.mean, self.std = (
            torch.tensor(data.statistics[part]).view(-1, 1) for part in ("mean", "std")
        )
        classes = data.condition[key].classes
        batches, steps = classifier.training_batches(data.train_set, STEPS, EPOCHS)
        self.network = classifier.trained(
            lambda: Classifier(classes),
            ((x, condition[key]) for x, condition in batches),
            steps,
            PEAK,
            identity=[VERSION, data.identity, data.statistics, data.shape, key, classes],
            folder=cache,
        )

    @torch.inference_mode()
    def __call__(self, media: Tensor, condition: Condition) -> dict[str, Tensor]:
        """{"class_accuracy": (B,)}, or of the field's own name."""
        self.network.to(media.device)
        mean, std = self.mean.to(media.device), self.std.to(media.device)
        x = ((log_mel(media, self.mel) - mean) / std * SIGMA_DATA)[:, None]
        seen = torch.cat([self.network(chunk).argmax(1) for chunk in x.split(256)])
        right = seen == condition[self.key].to(media.device)
        return {f"{self.name}_accuracy": right.float()}


class Classifier(nn.Sequential):
    """A small convolutional classifier: samples x (B, 1, mels, frames) -> logits (B, classes)."""

    def __init__(self, classes: int) -> None:
        """Convolutions at a quarter, an eighth and a sixteenth of the spectrogram's size."""
        super().__init__(
            nn.PixelUnshuffle(4),
            classifier.convolution(16, 64),
            classifier.convolution(64, 64),
            nn.MaxPool2d(2, ceil_mode=True),
            classifier.convolution(64, 96),
            classifier.convolution(96, 96),
            nn.MaxPool2d(2, ceil_mode=True),
            classifier.convolution(96, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128, classes),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        x = functional.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        return super().forward(x.contiguous(memory_format=torch.channels_last))
