"""Feeding batches: what data modules share."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def loader(dataset: Dataset, batch_size: int, workers: int, **options: bool) -> DataLoader:
    """A loader of a data set whose ``__getitems__`` gives a whole batch at once.

    ``options`` are the DataLoader's own, such as shuffle and drop_last.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        **options,
    )


def _identity(batch: Any) -> Any:
    return batch
