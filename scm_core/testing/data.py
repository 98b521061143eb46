"""Checks of the data, the conditions and the codec.

Limits are asked as `not value <= LIMIT`, here and in the other checks: NaN is within none.
"""

from __future__ import annotations

import math
import pickle
from typing import Any

import torch
from torch import Tensor

from scm_core.base.errors import UserError
from scm_core.contract.spec import SIGMA_DATA
from scm_core.data.batches import Shuffled
from scm_core.testing.subject import SAMPLES, Fault, Subject, equal, first, point, relative, seeded

ELEMENTS = 20_000_000  # of the training data, at most, in the check of its statistics
MEAN, STD = 0.05, 0.05  # how far mean and std of the data may be from 0 and SIGMA_DATA
EXACT, INEXACT, ENCODED = 1e-3, 1.0, 0.05  # errors of a round trip and of encode, relative
SLOW = 10.0  # seconds to read the data, from which it is worth a word
CLIPPED = 0.01  # share of the elements of a decoded batch that lie at its very ends


def shapes(subject: Subject) -> str:
    """x is float32 (B, *shape) in both loaders, F alike; decode and preview fit together."""
    shape = tuple(subject.data.shape)
    for name, (x, _) in (("train", subject.batch), ("val", subject.held_out)):
        if tuple(x.shape[1:]) != shape or x.dtype != torch.float32 or not x.isfinite().all():
            finite = "" if x.isfinite().all() else ", not all finite"
            raise Fault(
                f"{name}_dataloader gives x {x.dtype} {tuple(x.shape)}{finite}",
                f"x has to be finite float32 (B, {', '.join(map(str, shape))}), as shape says",
            )
    x, t, condition = point(subject)
    F = subject.network(x, t, condition)
    if F.shape != x.shape or not F.isfinite().all():
        raise Fault(f"F is {tuple(F.shape)} for x {tuple(x.shape)}", "F needs the shape of x")
    media = subject.codec.decode(subject.held_out.x[:SAMPLES])
    count, wanted = sum(1 for _ in media), len(subject.held_out.x[:SAMPLES])
    picture = subject.codec.preview(media)
    if count != wanted or picture.dtype != torch.uint8 or picture.shape[2:] != (3,):
        raise Fault(
            f"{count} media from {wanted} samples; preview {picture.dtype} {tuple(picture.shape)}",
            "decode keeps the number of samples, and preview gives one picture, uint8 (H, W, 3)",
        )
    return f"x float32 (B, {', '.join(map(str, shape))}), F alike"


def statistics(subject: Subject) -> str:
    """Mean 0 and standard deviation SIGMA_DATA over the training data."""
    total, square, count = 0.0, 0.0, 0
    for x, _ in subject.data.train_dataloader():
        total, square = total + x.double().sum(), square + x.double().square().sum()
        count += x.numel()
        if count >= ELEMENTS:
            break
    mean = float(total / count)
    std = math.sqrt(float(square / count) - mean**2)
    figure = f"mean {mean:.3f}, std {std:.3f} over {count:,} elements"
    if subject.seconds > SLOW:
        figure += (
            f"; reading the data took {subject.seconds:.0f} s, and will in every training and "
            "evaluation: keep what is made of them on disk, by InMemory(kept_as=...) or "
            "scm_core.data.cache"
        )
    if not (abs(mean) <= MEAN and abs(std - SIGMA_DATA) <= STD):
        raise Fault(
            figure,
            f"the method is scaled to mean 0 and std {SIGMA_DATA}: give "
            f"x = (data - mean) / std * SIGMA_DATA, with mean and std of the training data",
        )
    return figure


def condition(subject: Subject) -> str:
    """Real batches are as the schema says: free names, types, shapes, classes, and never null."""
    schema = subject.data.condition
    if "noise" in schema:
        raise Fault(
            "a field is called noise", "that is an input of scm_core.export: call it otherwise"
        )
    for x, given in (subject.batch, subject.held_out):
        if set(given) != set(schema):
            raise Fault(
                f"a batch has {sorted(given)}, the schema {sorted(schema)}",
                "every key of a batch's condition needs a field in the schema, and the reverse",
            )
        for key, field in schema.items():
            null, value = field.null(len(x)), given[key]
            wanted = (
                f"{field} wants {null.dtype} {tuple(null.shape)}, and no null for a real sample"
            )
            try:
                field.validate(value)
            except UserError as error:
                raise Fault(f"{key}: {error}", wanted) from error
            if (value == null).reshape(len(x), -1).all(1).any():
                raise Fault(f"{key} is null for some samples", wanted)
    return ", ".join(f"{key} {type(field).__name__}" for key, field in schema.items()) or "none"


def round_trip(subject: Subject) -> str:
    """Real media through encode and decode: the error, nothing clipped, x as loaded."""
    media, _ = first(subject.data.real("test"))
    media = media[:SAMPLES]
    x = subject.codec.encode(media)
    decoded = subject.codec.decode(x)
    loaded = subject.held_out.x[: len(x)]
    again = subject.codec.encode(decoded)
    difference, error = relative(x, loaded), relative(again, x)
    exact = subject.codec.exact
    figure = f"error {error:.2g} of {'an exact' if exact else 'a lossy'} codec"
    clipped = _at_ends(decoded) - _at_ends(media)
    if clipped > CLIPPED:
        raise Fault(
            f"{figure}; {clipped:.1%} of the decoded values lie at the very ends",
            "decode clips real data: widen its limits, or clip where the data themselves end",
        )
    if not error <= (EXACT if exact else INEXACT):
        raise Fault(
            figure, "decode has to undo encode: the same mean and std in both, or exact = False"
        )
    if not difference <= ENCODED:
        raise Fault(
            f"encode differs from val_dataloader by {difference:.2g}",
            "encode and the data module have to standardise alike, and real('test') has to come "
            "in the order of val_dataloader()",
        )
    return figure


def seed(subject: Subject) -> str:
    """The same seed gives the same first batch and the same weights."""

    def draw() -> list[Tensor]:
        with seeded(1):
            loader = subject.data.train_dataloader()
            if isinstance(getattr(loader, "sampler", None), Shuffled):
                loader.sampler.epoch = 0
            x, given = first(loader)
            return [x, *given.values(), *subject.backbone().state_dict().values()]

    if not equal(draw(), draw()):
        raise Fault(
            "two runs of one seed differ",
            "draw from torch's global generator, or from one with a fixed seed, never from the "
            "clock or an unseeded generator",
        )
    return "two runs of one seed are alike"


def global_generator(subject: Subject) -> str:
    """Held-out data, F and decoding are the same whatever the global seed.

    Data are read again only if they took numbers out of a global generator the first time.
    """
    x, t, given = point(subject)

    def draw(number: int) -> dict[str, list[Tensor]]:
        with seeded(number), torch.no_grad():
            data = subject.data
            if subject.drew:
                data = subject.spec.data(subject.config)
                data.setup()
            held_out = first(data.val_dataloader())
            media = subject.codec.decode(subject.held_out.x[:2])
            return {
                "the data": [held_out.x, *held_out.condition.values()],
                "F": [subject.network(x, t, given)],
                "decode": [media] if isinstance(media, Tensor) else [],
            }

    one, other = draw(1), draw(2)
    for name in one:
        if not equal(one[name], other[name]):
            raise Fault(
                f"{name} change with the global random state",
                "draw from a generator of your own, torch.Generator().manual_seed(...): what is "
                "measured may not depend on who drew before",
            )
    return "nothing fixed depends on it"


def pickling(subject: Subject) -> str:
    """The data set travels to worker processes: what comes back gives the same sample."""
    loader = subject.data.val_dataloader()
    try:
        copied, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Fault(
            str(error).splitlines()[0],
            "worker processes need to pickle the data set and collate_fn: no lambdas, no local "
            "functions, no open files in them",
        ) from error
    fetch = getattr(copied, "__getitems__", lambda indices: [copied[i] for i in indices])
    indices = list(range(min(2, len(copied))))
    x, _ = collate(fetch(indices))
    if not equal([x], [subject.held_out.x[: len(indices)]]):
        raise Fault("a copy gives other samples", "keep all of its state in the data set")
    return f"{len(copied):,} held-out samples"


def _at_ends(media: Any) -> float:
    """The share of a batch's values that are its lowest or its highest."""
    if not isinstance(media, Tensor):
        return 0.0
    return float(((media == media.min()) | (media == media.max())).float().mean())
