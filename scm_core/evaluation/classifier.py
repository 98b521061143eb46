"""Small classifiers that score what is generated: trained once on real data, then cached."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from scm_core.base.device import best_device, resolve_precision
from scm_core.base.files import save_tensors
from scm_core.data import cache

log = logging.getLogger(__name__)

CACHE = cache.CACHE / "judges"
BATCH = 128  # samples of a step, however large the batches of the models are that are judged


def trained(
    build: Callable[[], nn.Module],
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    max_lr: float,
    identity: Any,
    folder: Path,
) -> nn.Module:
    """The classifier that ``build`` makes, trained at first use, seeded, and kept in ``folder``.

    ``batches`` are inputs (B, ...) and classes int64 (B,) without end, of which ``steps`` are
    taken; ``identity`` is all that the result depends on, in plain containers. Raises UserError
    when the cache cannot be written.
    """
    path = cache.place(folder, identity)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
        if not _restored(network, path):
            train(network, batches, steps, max_lr)
            _save(network, path)
    return network.eval().requires_grad_(False)


def training_batches(dataset: Dataset, steps: int, epochs: int) -> tuple[Iterator[Any], int]:
    """Batches of a data set without end, in a new order in each epoch, and how many to take.

    Every process gets the same ones, of `BATCH` samples or an eighth of a small data set; training
    ends at the first of ``steps`` and ``epochs``.
    """
    size = min(BATCH, -(-len(dataset) // 8))

    def batches() -> Iterator[Any]:
        for epoch in itertools.count():
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(epoch))
            for chosen in order.split(size)[: len(dataset) // size]:
                yield dataset.__getitems__(chosen.tolist())

    return batches(), min(steps, epochs * (len(dataset) // size))


def train(
    network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int, max_lr: float
) -> None:
    """Cross-entropy by AdamW under one cycle of the learning rate, on the best device."""
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr, steps)
    device = best_device()
    network.to(device).train()
    fast = resolve_precision("auto", device.type) == "bf16-mixed"
    for _ in track(range(steps), "training the classifier", transient=True):
        x, classes = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            logits = network(x.to(device))
        loss = functional.cross_entropy(logits.float(), classes.to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.cpu()


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3, normalised over the batch, rectified: these networks see no JVP."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _restored(network: nn.Module, path: Path) -> bool:
    """Whether the kept weights could be loaded."""
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        if path.exists():
            log.warning("%s cannot be read (%s) and is made again", path, error)
        return False
    return True


def _save(network: nn.Module, path: Path) -> None:
    save_tensors(path, {name: value.contiguous() for name, value in network.state_dict().items()})
