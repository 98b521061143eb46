"""Whether a student repeats its training data: the nearest real media of what it draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scm_core.contract.fields import Condition
from scm_core.contract.spec import DataModule
from scm_core.data.media import write_png
from scm_core.engine import sampling
from scm_core.engine.checkpoint import Checkpoint
from scm_core.evaluation.evaluator import Advance, Bench, Row

NEAREST = 3  # training media beside each sample in the picture
SHOWN = (64, 16, 4)  # samples in the picture: the first that makes no more values than VALUES
VALUES = 1 << 25
PERCENTILE = 0.01  # of real test media: nearer than these are to training media is suspicious


@torch.no_grad()
def memorised(
    bench: Bench,
    student: Checkpoint,
    data: DataModule,
    reference: Tensor,
    condition: Condition,
    path: Path | None,
    advance: Advance,
) -> Row:
    """How near two-step samples are to training media, beside how near real test media are.

    Distances are those of the chooser's features; ``reference`` (N, D) are those of the training
    media that `Bench.reference` took. ``median_over_test`` is the ratio of the median distances to
    the nearest one; ``share_nearer_than_first_percentile`` is the share of samples that are nearer
    than all but 1 % of test media are: 0.01 is expected of fresh samples, 1 of copies. What went
    through a lossy codec is compared with test media that did. ``path``, if any, gets a picture:
    the nearest samples first, each followed by its nearest training media.
    """
    chooser, n = bench.features[0], bench.n
    places = torch.arange(n)
    there = {key: value[places % len(value)] for key, value in condition.items()}
    draw = sampling.make_sampler(student)
    x = sampling.sample_all(student, draw, there, n, bench.seed, bench.batch_size)
    samples = torch.cat([chooser(media).cpu() for media in _decoded(student, x, bench)])
    through = None if student.codec.exact else student.codec
    single = replace(bench, features=(chooser,), scorer=lambda media, condition: {})
    test = single.test(data, advance, through).features[chooser.name]
    found, expected = (torch.cdist(one.double(), reference.double()) for one in (samples, test))
    nearest, usual = found.amin(1), expected.amin(1)
    near = nearest < usual.quantile(PERCENTILE)
    if path:
        first = nearest.argsort()[: SHOWN[0]]
        neighbours = found[first].topk(min(NEAREST, len(reference)), largest=False).indices
        _show(student, data, bench, x[first], neighbours, path)
    return {
        "n": n,
        "test": len(test),
        "training": len(reference),
        "features": chooser.name,
        "median_over_test": (nearest.median() / usual.median()).item(),
        "share_nearer_than_first_percentile": near.double().mean().item(),
    }


def _decoded(model: Checkpoint, x: Tensor, bench: Bench) -> Iterator[Any]:
    for part in x.split(bench.batch_size):
        yield model.codec.decode(part.to(bench.device))


def _show(
    model: Checkpoint, data: DataModule, bench: Bench, x: Tensor, neighbours: Tensor, path: Path
) -> None:
    """A picture of samples x (B, C, *grid), each followed by its training neighbours (B, K)."""
    media = torch.cat([media.cpu() for media in _decoded(model, x, bench)])
    values = (1 + NEAREST) * media[0].numel()
    count = next((count for count in SHOWN if count * values <= VALUES), SHOWN[-1])
    media, real = media[:count], _training(data, bench.seed, neighbours[:count])
    rows = [torch.cat([one[None], beside]) for one, beside in zip(media, real, strict=True)]
    write_png(model.codec.preview(torch.cat(rows)), path)


def _training(data: DataModule, seed: int, places: Tensor) -> Tensor:
    """The training media (B, K, ...) at these places (B, K) of the order of `Bench.reference`."""
    torch.manual_seed(sampling.fold(seed))
    wanted, found, passed = set(places.flatten().tolist()), {}, 0
    for media, _ in data.real("train"):
        here = [i for i in range(passed, passed + len(media)) if i in wanted]
        found |= {i: media[i - passed].cpu() for i in here}
        passed += len(media)
        if len(found) == len(wanted):
            break
    return torch.stack([torch.stack([found[i] for i in row]) for row in places.tolist()])
