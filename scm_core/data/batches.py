"""Feeding batches: what data modules share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset

from scm_core.base.distributed import world
from scm_core.base.errors import UserError
from scm_core.contract.fields import Condition, Schema
from scm_core.contract.spec import Batch, Codec, DataModule
from scm_core.data.cache import CACHE, Table, cached

SPLITS = ("train", "test")


class Shuffled(DistributedSampler):
    """A new order in each epoch by `seed` and the epoch alone, shared among processes.

    The next pass is through `epoch` without the `skip` samples that a resumed run has seen of it;
    `order` are the samples of the pass that goes on.
    """

    def __init__(self, dataset: Dataset, drop_last: bool) -> None:
        size, rank = world()
        super().__init__(dataset, num_replicas=size, rank=rank, drop_last=drop_last)
        self.skip, self.order = 0, []

    def __iter__(self) -> Iterator[int]:
        self.order = list(super().__iter__())[self.skip :]
        self.epoch, self.skip = self.epoch + 1, 0
        return iter(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Lightning's count of epochs, which is not needed: a training sets `epoch` and `skip`."""


class Loader(DataLoader):
    """As torch's; a UserError is one line, whichever process it comes from."""

    def __iter__(self) -> Iterator[Any]:
        return self._told(super().__iter__())

    @staticmethod
    def _told(batches: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except UserError as error:  # a worker's is told with its traceback, of which it is the end
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


def loader(
    dataset: Dataset,
    batch_size: int,
    workers: int = 0,
    *,
    shuffle: bool = False,
    drop_last: bool = False,
) -> DataLoader:
    """A loader of a data set whose ``__getitems__`` gives a whole batch at once.

    Where it shuffles, processes share each batch, and a run that was interrupted goes on in the
    middle of an epoch (`Shuffled`). UserError for a batch that they cannot share equally, or less
    than no workers.
    """
    if workers < 0:
        raise UserError(f"data.workers={workers} must be at least 0")
    if shuffle:
        batch_size, left = divmod(batch_size, world()[0])
        if left or not batch_size:
            raise UserError(f"data.batch_size must divide by the {world()[0]} processes")
    return Loader(
        dataset,
        batch_size=batch_size,
        sampler=Shuffled(dataset, drop_last) if shuffle else None,
        drop_last=drop_last,
        generator=torch.Generator(),  # to begin an epoch takes no number out of a training step's
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def in_random_order(dataset: Dataset) -> Subset:
    """The data set in one random order, the same in every run and process."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    return Subset(dataset, order.tolist())


def spread(batches: Any, n: int) -> Batch:
    """`n` samples, or all, evenly spread over a loader's data set.

    Where that cannot be asked for single samples, they are of its first batch.
    """
    dataset = getattr(batches, "dataset", None)
    if dataset is None or isinstance(dataset, IterableDataset):
        x, condition = next(iter(batches))
        chosen = _spread(len(x), n)
        return Batch(x[chosen], {key: value[chosen] for key, value in condition.items()})
    chosen = _spread(len(dataset), n)
    several = getattr(dataset, "__getitems__", None)
    found = several(chosen) if several else [dataset[i] for i in chosen]
    return batches.collate_fn(found)


def _spread(size: int, n: int) -> list[int]:
    return [i * size // min(n, size) for i in range(min(n, size))]


class Samples(Dataset):
    """Tensors as a data set: x float32 (N, C, *grid) and the condition of each."""

    def __init__(self, x: Tensor, condition: Condition) -> None:
        self.x, self.condition = x, condition

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: list[int]) -> Batch:
        return Batch(self.x[indices], {key: c[indices] for key, c in self.condition.items()})


def overall(media: Tensor) -> dict[str, float]:
    """Mean and standard deviation of all numbers."""
    return {"mean": media.mean().item(), "std": media.std().item()}


def per_channel(media: Tensor) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of (N, C, ...); `channelwise` reads them."""
    channels = [media[:, i].float() for i in range(media.shape[1])]
    return {
        "mean": [channel.mean().item() for channel in channels],
        "std": [max(channel.std().item(), 1e-6) for channel in channels],
    }


class InMemory(DataModule):
    """A data module for media that fit into memory.

    ``read(split)`` gives the media of "train" or "test", a tensor (N, ...), and their conditions,
    as the schema ``condition`` says. ``codec(statistics)`` builds the codec, which encodes
    them; the statistics are what ``statistics(media)`` says of the training media, in plain
    containers: `overall`, `per_channel`, or a function of yours.

    ``kept_as`` is all that ``read`` depends on, in plain containers. Where it is given, what
    ``read`` gave is kept in ``cache`` under it, and read from there the next time.
    """

    def __init__(
        self,
        read: Callable[[str], tuple[Tensor, Condition]],
        condition: Schema,
        codec: Callable[[dict[str, Any]], Codec],
        batch_size: int,
        statistics: Callable[[Tensor], dict[str, Any]] = overall,
        kept_as: Any = None,
        cache: Path = CACHE / "media",
    ) -> None:
        self.read, self.condition, self.codec = read, condition, codec
        self.batch_size, self.measure = batch_size, statistics
        self.kept_as, self.cache = kept_as, cache
        self.media: dict[str, tuple[Tensor, Condition]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read, measure and standardise both splits; a second call does nothing."""
        if self.media:
            return
        if self.kept_as is None:
            self.media = {split: self.read(split) for split in SPLITS}
        else:
            self.media = self._kept()
        self.standardise(self.measure(self.media["train"][0].float()))

    def standardise(self, statistics: dict[str, Any]) -> None:
        """Serve samples by these statistics."""
        self.statistics = statistics
        encode = self.codec(statistics).encode
        self.sets = {split: Samples(encode(m), c) for split, (m, c) in self.media.items()}
        self.shape = tuple(self.sets["train"].x.shape[1:])

    @property
    def identity(self) -> Any:
        """What media and conditions are."""
        return {
            split: [stated(media), {key: stated(value) for key, value in condition.items()}]
            for split, (media, condition) in self.media.items()
        }

    def _kept(self) -> dict[str, tuple[Tensor, Condition]]:
        """Both splits from the cache, where they are put if need be."""
        read = self.read.func if isinstance(self.read, partial) else self.read
        tensors, _ = cached(self.cache, [read.__module__, self.kept_as], self._table)

        def condition(split: str) -> Condition:
            return {k.partition(".")[2]: v for k, v in tensors.items() if k.startswith(f"{split}.")}

        return {split: (tensors[split], condition(split)) for split in SPLITS}

    def _table(self) -> Table:
        tensors = {}
        for split in SPLITS:
            tensors[split], condition = self.read(split)
            tensors |= {f"{split}.{key}": value for key, value in condition.items()}
        # Splits are often views of one tensor, which a file cannot hold.
        return {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, {}

    def train_dataloader(self) -> DataLoader:
        """Shuffled full batches."""
        return loader(self.sets["train"], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The split "test" in order, down to its last sample."""
        return loader(self.sets["test"], self.batch_size)

    def real(self, split: str) -> Iterator[tuple[Tensor, Condition]]:
        """The media themselves: of "train" in a fixed random order, of "test" in order."""
        media, condition = self.media[split]
        order = torch.arange(len(media))
        if split == "train":
            order = torch.randperm(len(media), generator=torch.Generator().manual_seed(0))
        for part in order.split(self.batch_size):
            yield media[part], {key: value[part] for key, value in condition.items()}


def stated(values: Tensor) -> Any:
    """What a tensor (N, ...) is on any machine, in plain containers.

    Integers are told by a hash of all; floats, whose last digits are each machine's own, by mean
    and std of at most 64 of the N.
    """
    if not values.is_floating_point():
        content = values.cpu().contiguous().numpy().tobytes()
        return [list(values.shape), hashlib.sha256(content).hexdigest()]
    few = values[:: 1 + len(values) // 64].double().flatten(1)
    mean, std = few.mean(1).tolist(), few.std(1, correction=0).tolist()
    return {"shape": list(values.shape), "mean": mean, "std": std}


def channelwise(statistics: dict[str, Any], grid: int) -> tuple[Tensor, Tensor]:
    """Mean and std, each (C, 1, ...), for a grid of that many dimensions."""
    mean, std = (torch.tensor(statistics[key]).view(-1, *[1] * grid) for key in ("mean", "std"))
    return mean, std


def _identity(batch: Any) -> Any:
    return batch
