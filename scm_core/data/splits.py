"""A data module of two splits that are read once, measured, and standardised batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.contract.fields import Condition
from scm_core.contract.spec import Batch, DataModule
from scm_core.data.batches import in_random_order, loader


class Split(ABC):
    """One split of a labelled set."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def media(self, chosen: Tensor) -> Tensor:
        """Those at these places, int64 (B,): what an evaluation compares with, (B, ...)."""

    @abstractmethod
    def condition(self, chosen: Tensor) -> Condition:
        """Their conditions."""

    def values(self, chosen: Tensor) -> Tensor:
        """What is standardised, (B, C, *grid): the media themselves unless a subclass differs."""
        return self.media(chosen)


class Shown(Dataset):
    """A split as it is: batches of media and their conditions."""

    def __init__(self, split: Split) -> None:
        """Serve all of the split."""
        self.split = split

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.split)

    def conditions(self, indices: list[int]) -> Condition:
        """Those of a batch alone, for which no media are read."""
        return self.split.condition(torch.as_tensor(indices))

    def __getitem__(self, index: int) -> Any:
        """One as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Condition]:
        """A whole batch at once."""
        chosen = torch.as_tensor(indices)
        return self.split.media(chosen), self.split.condition(chosen)


class Standardised(Shown):
    """A split as standardised batches: x = value * scale + shift."""

    def __init__(self, split: Split, scale: Tensor, shift: Tensor) -> None:
        """By tensors that broadcast to (C, *grid)."""
        super().__init__(split)
        self.scale, self.shift = scale, shift

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch at once: x float32 (B, C, *grid) and its conditions."""
        chosen = torch.as_tensor(indices)
        x = self.split.values(chosen).float().mul_(self.scale).add_(self.shift)
        return Batch(x, self.split.condition(chosen))


class SplitData(DataModule):
    """A data module that `read`s two splits, `measure`s the first and standardises both.

    `config` has `name`, which of the `sets` to read, `batch_size` and `workers`; `kind` is what
    people call samples; `training` is the data set that serves the training split.
    """

    kind = "clips"
    sets: tuple[str, ...]
    training: type[Standardised] = Standardised

    def __init__(self, config: Any, counts: Sequence[str], limits: Limits | None) -> None:
        """Check the configuration, whose keys `counts` are at least 1; nothing is read yet."""
        if config.name not in self.sets:
            raise UserError(f"data.name={config.name} is none of {', '.join(self.sets)}.")
        for key in ("batch_size", *counts):
            value = getattr(config, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value} must be at least 1.")
        self.config, self.limits = config, limits or Limits()
        self.splits: tuple[Split, ...] = ()

    @abstractmethod
    def read(self) -> tuple[Split, Split]:
        """The training and the held-out split; sets `condition` and `identity`."""

    @abstractmethod
    def measure(self, train: Split) -> dict[str, Any]:
        """The statistics of the training split."""

    @abstractmethod
    def affine(self, statistics: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Scale and shift of `Standardised`, by these statistics."""

    def setup(self, stage: str | None = None) -> None:
        """Read both splits and measure the training split; a second call does nothing."""
        if self.splits:
            return
        train, test = self.read()
        if len(train) < self.config.batch_size:
            raise UserError(
                f"The training split has {len(train)} {self.kind}, fewer than "
                f"data.batch_size={self.config.batch_size}; choose a smaller batch size."
            )
        statistics = self.measure(train)
        self.shape = tuple(train.values(torch.tensor([0])).shape[1:])
        self.splits = train, test
        self.standardise(statistics)

    def standardise(self, statistics: dict[str, Any]) -> None:
        """Serve samples by these statistics."""
        self.statistics, (train, test) = statistics, self.splits
        affine = self.affine(statistics)
        self.train_set, self.test_set = self.training(train, *affine), Standardised(test, *affine)

    def train_dataloader(self) -> DataLoader:
        """Shuffled full batches of the training split."""
        return self._loader(self.train_set, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The held-out split in order, down to its last sample."""
        return self._loader(self.test_set)

    def real(self, split: str) -> Iterator[tuple[Tensor, Condition]]:
        """Batches of media and conditions: ``train`` in a fixed random order, ``test`` in order."""
        shown = [Shown(each) for each in self.splits]
        return iter(self._loader(in_random_order(shown[0]) if split == "train" else shown[1]))

    def _loader(self, samples: Dataset, **options: bool) -> DataLoader:
        return loader(samples, self.config.batch_size, self.config.workers, **options)
