"""The sounds to train on: notes of a soundfont or recordings, as standardised log-mels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from modalities.audio.clips import Clips
from modalities.audio.mel import FLOOR, MelSettings
from modalities.audio.notes import Notes
from modalities.audio.recordings import Recordings
from scm_core.base.arguments import place, prose
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.contract.fields import Condition, Schema
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.data.batches import loader
from scm_core.data.cache import CACHE
from scm_core.data.prepared import Joined

NAMES = ("notes", "folder", "speech_commands")


@dataclass
class AudioData:
    """Which sounds to train on, and how they are fed.

    ``name`` is ``notes``, ``folder`` or ``speech_commands``; a clip is ``frames`` hops long.
    ``font`` (an .sf2 or .sf3 file), ``pitch_low`` and ``pitch_high`` (MIDI numbers) and
    ``velocities`` (how many) are of notes; ``root``, ``pattern`` (a regular expression whose group
    is a file's class) and ``normalise`` (loudness, peak or none) of recordings. ``licence`` is
    what the checkpoint says of the sounds.
    """

    name: str = "notes"
    root: str | None = place()
    batch_size: int = 128
    workers: int = 0
    frames: int = 64
    font: str | None = place()
    pitch_low: int = 48
    pitch_high: int = 84
    velocities: int = 3
    pattern: str | None = prose()
    normalise: str = "loudness"
    licence: str | None = prose()


class Standardised(Dataset):
    """A split as standardised batches: x = (log-mel - mean) / std * sigma_data, per mel bin."""

    def __init__(self, clips: Clips, chosen: Tensor, statistics: dict[str, Any]) -> None:
        """Serve the ``chosen`` clips, int64 (N,)."""
        self.clips, self.chosen = clips, chosen
        mean, std = (torch.tensor(statistics[key]).view(1, -1, 1) for key in ("mean", "std"))
        self.scale = SIGMA_DATA / std
        self.shift = -mean * self.scale

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.chosen)

    def __getitem__(self, index: int) -> Batch:
        """One clip as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch at once: x float32 (B, 1, mels, frames) and its conditions, int64 (B,)."""
        chosen = self.chosen[torch.as_tensor(indices)]
        x = self.clips.log_mels[chosen].float().mul_(self.scale).add_(self.shift)
        return Batch(x[:, None], self.condition(chosen))

    def condition(self, chosen: Tensor) -> Condition:
        """The conditions of these clips, by their place among all."""
        return {key: label[chosen] for key, label in self.clips.labels.items()}


class AudioDataModule:
    """The training and held-out clips; after ``setup()`` it states its shape and statistics.

    ``shape`` is (1, mels, frames), ``condition`` the schema, ``statistics`` mean and std of the
    training clips' log-mels for each bin, the mel settings, and the sounds' source and licence,
    ``identity`` all that the clips depend on.
    """

    shape: tuple[int, ...]
    condition: Schema
    statistics: dict[str, Any]
    identity: Any

    def __init__(
        self,
        config: AudioData,
        mel: MelSettings,
        cache: Path = CACHE,
        limits: Limits | None = None,
    ) -> None:
        """Check the configuration; nothing is read before ``setup()``."""
        if config.name not in NAMES:
            raise UserError(f"data.name={config.name} is none of {', '.join(NAMES)}.")
        for key in ("batch_size", "frames"):
            if getattr(config, key) < 1:
                raise UserError(f"data.{key}={getattr(config, key)} must be at least 1.")
        mel.check()
        self.config, self.mel, self.cache = config, mel, cache
        self.limits = limits or Limits()
        self._ready = False

    def setup(self, stage: str | None = None) -> None:
        """Read the clips and measure the training split; a second call does nothing."""
        if self._ready:
            return
        clips = self._read()
        train, test = (torch.nonzero(part)[:, 0] for part in (~clips.held_out, clips.held_out))
        if len(train) < self.config.batch_size:
            raise UserError(
                f"The training split has {len(train)} clips, fewer than "
                f"data.batch_size={self.config.batch_size}; choose a smaller batch size."
            )
        self.shape = (1, *clips.log_mels.shape[1:])
        self.condition = clips.schema
        mean, std = bin_statistics(clips.log_mels, train)
        self.clips, self.splits, self.identity = clips, (train, test), clips.identity
        self.standardise({"mean": mean, "std": std, "mel": asdict(self.mel), **clips.origin})
        self._ready = True

    def standardise(self, statistics: dict[str, Any]) -> None:
        """Serve samples by these statistics."""
        self.statistics = statistics
        mean, std = (torch.tensor(statistics[key]) for key in ("mean", "std"))
        silence = (math.log(FLOOR) - mean) / std * SIGMA_DATA
        self.bounds = (silence.view(1, -1, 1), torch.full((1, 1, 1), math.inf))
        self.train_set, self.test_set = (
            Standardised(self.clips, chosen, statistics) for chosen in self.splits
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled full batches of the training split."""
        return self._loader(self.train_set, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The held-out split in order, down to its last clip."""
        return self._loader(self.test_set)

    def real(self, split: str) -> Iterator[tuple[Tensor, Condition]]:
        """The sounds of ``train``, in a fixed random order, or ``test``, in order, in batches.

        Waveforms are float32 (B, samples), rendered or decoded now: no vocoder has touched them.
        """
        part = {"train": self.train_set, "test": self.test_set}[split]
        order = torch.arange(len(part))
        if split == "train":
            order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        for chosen in part.chosen[order].split(self.config.batch_size):
            yield part.clips.waveforms(chosen), part.condition(chosen)

    def _read(self) -> Clips:
        if self.config.name == "notes":
            return Notes(self.config, self.mel, self.cache / "notes")
        return Recordings(self.config, self.mel, self.cache / "recordings", self.limits)

    def _loader(self, clips: Standardised, **options: bool) -> DataLoader:
        return loader(clips, self.config.batch_size, self.config.workers, **options)


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
