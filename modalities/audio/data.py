"""The sounds to train on: notes of a soundfont or recordings, as standardised log-mels."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.audio.clips import ClipSplit
from modalities.audio.mel import FLOOR, MelSettings
from modalities.audio.notes import Notes
from modalities.audio.recordings import Recordings
from modalities.audio.settings import AudioData
from modalities.common.text import TextEncoder
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.contract.spec import SIGMA_DATA
from scm_core.data.cache import CACHE
from scm_core.data.prepared import Joined
from scm_core.data.splits import SplitData


class AudioDataModule(SplitData):
    """The training and held-out clips: x is (B, 1, mels, frames).

    ``statistics`` are mean and std of the training clips' log-mels for each bin, the mel settings,
    and the sounds' source and licence. Media are waveforms float32 (B, samples), rendered or
    decoded when they are asked for: no vocoder has touched them.
    """

    sets = ("notes", "folder", "speech_commands")

    def __init__(
        self,
        config: AudioData,
        mel: MelSettings,
        cache: Path = CACHE,
        limits: Limits | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        """Check the configuration; nothing is read before ``setup()``. With an ``encoder`` sounds
        are recordings with captions."""
        super().__init__(config, ["frames"], limits)
        mel.check(config.frames)
        self.mel, self.cache, self.encoder = mel, cache, encoder

    def read(self) -> tuple[ClipSplit, ClipSplit]:
        """Both splits of the notes or recordings that are named."""
        if self.config.name == "notes" and not self.encoder:
            if key := next((key for key in ("root", "pattern") if getattr(self.config, key)), None):
                raise UserError(f"data.{key}= is of recordings: data.name=folder goes with it.")
            clips = Notes(self.config, self.mel, self.cache / "notes")
        else:
            of_files = self.mel, self.cache / "recordings", self.limits
            clips = Recordings(self.config, *of_files, self.encoder)
        self.condition, self.identity = clips.schema, clips.identity
        train, test = (part.nonzero()[:, 0] for part in (~clips.held_out, clips.held_out))
        return ClipSplit(clips, train), ClipSplit(clips, test)

    def measure(self, train: ClipSplit) -> dict[str, Any]:
        """Mean and std of each bin, and what else decoding and a reader need."""
        mean, std = bin_statistics(train.clips.log_mels, train.chosen)
        return {"mean": mean, "std": std, "mel": asdict(self.mel), **train.clips.origin}

    def affine(self, statistics: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """To x = (log-mel - mean) / std * sigma_data, per mel bin."""
        mean, std = (torch.tensor(statistics[key]).view(1, -1, 1) for key in ("mean", "std"))
        return SIGMA_DATA / std, -mean * (SIGMA_DATA / std)

    def standardise(self, statistics: dict[str, Any]) -> None:
        """Serve samples by these statistics, which say where silence is."""
        super().standardise(statistics)
        mean, std = (torch.tensor(statistics[key]) for key in ("mean", "std"))
        silence = (math.log(FLOOR) - mean) / std * SIGMA_DATA
        self.bounds = (silence.view(1, -1, 1), torch.full((1, 1, 1), math.inf))


def bin_statistics(log_mels: Tensor | Joined, chosen: Tensor) -> tuple[list[float], list[float]]:
    """Mean and std of each mel bin over the ``chosen`` clips of (N, mels, frames).

    A bin that never varies gets std 1, so x is 0 there.
    """
    total = torch.zeros(2, log_mels.shape[1], dtype=torch.float64)
    for part in chosen.split(512):
        values = log_mels[part].double()
        total += torch.stack([values.sum((0, 2)), values.square().sum((0, 2))])
    mean, square = total / (len(chosen) * log_mels.shape[2])
    std = (square - mean.square()).clamp(min=0).sqrt()
    return mean.tolist(), torch.where(std > 1e-3, std, 1.0).tolist()
