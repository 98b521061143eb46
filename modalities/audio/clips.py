"""What every source of sound gives the data module, and a split of it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from scm_core.contract.fields import Condition, Schema
from scm_core.data.prepared import Joined
from scm_core.data.splits import Split

SILENCE = 1e-3  # a waveform that stays below this peak (-60 dB) is silent


class Clips(Protocol):
    """Labelled sounds of one length.

    ``log_mels`` is float16 (N, mels, frames), ``labels`` int64 (N,) for each field of ``schema``,
    ``held_out`` bool (N,); ``origin`` has the source's name and licence; ``identity`` is what they
    are on any machine, in plain containers.
    """

    schema: Schema
    log_mels: Tensor | Joined
    labels: Condition
    held_out: Tensor
    origin: dict[str, str]
    identity: dict[str, Any]

    def waveforms(self, indices: Tensor) -> Tensor:
        """The sounds themselves, float32 (B, samples) in [-1, 1]."""


class ClipSplit(Split):
    """Some of the clips."""

    def __init__(self, clips: Clips, chosen: Tensor) -> None:
        """Those at the places ``chosen``, int64 (N,)."""
        self.clips, self.chosen = clips, chosen

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.chosen)

    def media(self, chosen: Tensor) -> Tensor:
        """Waveforms float32 (B, samples)."""
        return self.clips.waveforms(self.chosen[chosen])

    def values(self, chosen: Tensor) -> Tensor:
        """Log-mels (B, 1, mels, frames)."""
        return self.clips.log_mels[self.chosen[chosen]][:, None]

    def condition(self, chosen: Tensor) -> Condition:
        """Their labels."""
        return {key: label[self.chosen[chosen]] for key, label in self.clips.labels.items()}
