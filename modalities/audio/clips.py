"""What every source of sound gives the data module."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from scm_core.contract.fields import Condition, Schema
from scm_core.data.prepared import Joined

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
