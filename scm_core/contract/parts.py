"""The parts of a plugin as base classes: what each must have, and defaults for what it may have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import Dataset

from scm_core.contract.fields import Condition, Schema

SIGMA_DATA = 0.5


class Batch(NamedTuple):
    """Samples x, float32 (B, C, *grid) of mean 0 and std `SIGMA_DATA`, and their conditions."""

    x: Tensor
    condition: Condition


class DataModule(ABC):
    """The data; once set up it knows its samples.

    `shape` is (C, *grid), `condition` the schema, `statistics` what the codec needs to undo the
    standardisation (plain containers: they travel in the checkpoint). Where samples are latents,
    `train_set` and `test_set` have `__getitems__`, which gives a `Batch`, and `identity` is stated.
    """

    shape: tuple[int, ...]
    condition: Schema
    statistics: dict[str, Any]
    train_set: Dataset
    test_set: Dataset
    #: What the samples are made of on any machine, in plain containers.
    identity: Any = None
    #: Where decoding clips: a lowest and a highest x, which broadcast to (C, *grid).
    bounds: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Read and measure; may be called again. UserError for what people can fix."""

    @abstractmethod
    def train_dataloader(self) -> Any:
        """Shuffled batches of one size."""

    @abstractmethod
    def val_dataloader(self) -> Any:
        """The held-out split in order."""

    @abstractmethod
    def real(self, split: str) -> Iterator[tuple[Tensor, Condition]]:
        """What an evaluation compares with: media (B, ...) that no codec has touched.

        Of "train" in random order, of "test" in the order of `val_dataloader`.
        """

    def standardise(self, statistics: dict[str, Any]) -> None:  # noqa: B027 (may stay as it is)
        """Serve samples by these statistics, with which a resumed run began.

        They differ in their last digits from those measured here, which stay by default.
        """


class Codec(ABC):
    """Between samples x (B, C, *grid) and media, for a whole batch."""

    #: Whether `decode` gives back what was encoded. If not, an evaluation also measures real media
    #: encoded and decoded, the best that samples can be.
    exact = True
    #: What `traced` computes with, for an export to find its weights.
    autoencoder: nn.Module | None = None

    @abstractmethod
    def encode(self, media: Any) -> Tensor:
        """Media to x."""

    @abstractmethod
    def decode(self, x: Tensor) -> Any:
        """Samples x to media, which can be iterated over one by one."""

    @abstractmethod
    def save(self, media: Any, path: Path) -> Path:
        """Write one of them as `path` with a suffix, and return where it lies."""

    @abstractmethod
    def preview(self, media: Any) -> Tensor:
        """One picture of the whole batch, uint8 (H, W, 3)."""

    def play(self, media: Any, path: Path) -> Path:
        """The first of the files that `save` writes, alone: what a page or a client wants now."""
        return self.save(media, path)

    def seconds(self, media: Any) -> float | None:
        """How long each of them lasts, where they are played."""
        return None

    def sound(self, media: Any) -> tuple[Tensor, int] | None:
        """One waveform (samples,) of the batch and its rate in Hz, where there is one to hear."""
        return None

    def fidelity(self, media: Any, decoded: Any) -> dict[str, Tensor]:
        """How near media encoded and decoded are to the media: figures (B,) by name."""
        return {}

    def traced(self, x: Tensor) -> Tensor:
        """What `decode` does as far as that is one graph of tensors: what an export includes."""
        return x


class Autoencoder(nn.Module, ABC):
    """Between samples x (B, C, *grid) and latents of other channels on another grid.

    Nothing of it sees a tangent. A `pretrained` one is neither trained nor copied into checkpoints.
    One of a pretrained pipeline states the `normalisation` with which its networks see its latents,
    `mean` and `std` per channel; without one they are measured.
    """

    pretrained = False
    normalisation: dict[str, list[float]] | None = None

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Samples to latents."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents to samples."""


class Features(ABC):
    """A feature extractor for metrics; `name` appears in every figure's name."""

    name: str

    @abstractmethod
    def __call__(self, media: Any) -> Tensor:
        """Features float32 (B, D)."""


class Scorer:
    """Scores of media against their condition; this one has none."""

    #: Extractors that the scorer has learnt from the data: reported beside the modality's own.
    features: tuple[Features, ...] = ()

    def __call__(self, media: Any, condition: Condition) -> dict[str, Tensor]:
        """Per-sample scores (B,) by name, whose means become columns of an evaluation."""
        return {}
