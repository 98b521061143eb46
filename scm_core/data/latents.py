"""Samples that are an autoencoder's latents: made once, kept on disk, and decoded again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from scm_core.base import files
from scm_core.base.device import best_device, resolve_precision
from scm_core.base.errors import UserError
from scm_core.contract.fields import Condition
from scm_core.contract.spec import SIGMA_DATA, Autoencoder, Batch, Codec, DataModule
from scm_core.data.batches import Samples, channelwise, loader, per_channel
from scm_core.data.cache import CACHE, Table, cached

BATCH = 32  # samples that an autoencoder is given at a time, at most
ELEMENTS = 1 << 21  # of these samples together, at most, or one sample


class Latents(DataModule):
    """Another data module's samples as latents, float32 (B, C, *grid) of std sigma_data a channel,
    or as the autoencoder's own `normalisation` has it.

    They are encoded once and kept in `cache` under a hash of that data module's `identity` and
    `statistics` and of the autoencoder's weights, so that latents of other data or another
    autoencoder are never used. That data module has `train_set` and `test_set`, data sets whose
    `__getitems__` gives a `Batch`; of a training set that draws what it gives, `settled` is one
    that does not.
    """

    def __init__(
        self,
        data: DataModule,
        autoencoder: Autoencoder,
        batch_size: int,
        cache: Path = CACHE / "latents",
    ) -> None:
        """Encode the samples of `data`, which has been set up, or read them from the cache."""
        self.data, self.condition, self.batch_size = data, data.condition, batch_size
        weights, shape = fingerprint(autoencoder), list(data.shape)
        settled = getattr(data.train_set, "settled", None)  # of a set that draws what it gives
        sets = {"train": settled or data.train_set, "test": data.test_set}
        identity = [data.identity, data.statistics, shape, weights]
        identity += [len(settled)] if settled else []
        made, measured = cached(cache, identity, lambda: encoded(sets, shape, autoencoder))
        facts = autoencoder.normalisation or measured
        latents = {"autoencoder": weights, "of": shape, **facts}
        self.statistics = {**data.statistics, "latents": latents}
        self.train_set, self.test_set = (
            standardised(made, split, latents, getattr(samples, "conditions", None))
            for split, samples in sets.items()
        )
        self.shape = tuple(self.train_set.x.shape[1:])

    def setup(self, stage: str | None = None) -> None:
        """All of it is there since it was built."""

    def standardise(self, statistics: dict[str, Any]) -> None:
        """Serve latents by these statistics instead."""
        (mean, std), (other, spread) = (
            channelwise(known["latents"], len(self.shape) - 1)
            for known in (self.statistics, statistics)
        )
        for samples in (self.train_set, self.test_set):
            samples.x.mul_(std / spread).add_((mean - other) / spread * SIGMA_DATA)
        self.statistics = statistics

    def train_dataloader(self) -> DataLoader:
        """Shuffled full batches of the training split."""
        return self._loader(self.train_set, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        """The held-out split in order."""
        return self._loader(self.test_set)

    def real(self, split: str) -> Iterator[tuple[Tensor, Condition]]:
        """The media themselves, which no autoencoder has touched."""
        return self.data.real(split)

    def _loader(self, samples: Dataset, **options: bool) -> DataLoader:
        return loader(samples, self.batch_size, workers=0, **options)


class Coded(Samples):
    """Latents x (N, C, *grid) with the `conditions` of the data set that they are of."""

    def __init__(self, x: Tensor, conditions: Callable[[list[int]], Condition]) -> None:
        super().__init__(x, {})
        self.conditions = conditions

    def __getitems__(self, indices: list[int]) -> Batch:
        return Batch(self.x[indices], self.conditions(indices))


def standardised(
    made: dict[str, Tensor],
    split: str,
    statistics: dict[str, Any],
    conditions: Callable[[list[int]], Condition] | None = None,
) -> Samples:
    """A split of what `encoded` made: x = (z - mean) / std * sigma_data, per channel.

    Conditions are those that were kept, unless the data set has `conditions` without media.
    """
    named = {key.removeprefix(f"{split}."): v for key, v in made.items() if key.startswith(split)}
    z = named.pop("latents").float()
    mean, std = channelwise(statistics, z.ndim - 2)
    condition = {key.removeprefix("condition."): value for key, value in named.items()}
    x = z.sub_(mean).mul_(SIGMA_DATA / std)
    return Coded(x, conditions) if conditions else Samples(x, condition)


class LatentCodec(Codec):
    """A modality's own codec behind an autoencoder: between media and standardised latents."""

    exact = False

    def __init__(self, autoencoder: Autoencoder, codec: Codec, statistics: dict[str, Any]) -> None:
        """Of an autoencoder with its weights, and the statistics that `Latents` states."""
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.codec = codec
        self.batch = batch_of(statistics["of"])
        self.mean, self.std = channelwise(statistics, len(statistics["of"]) - 1)

    def encode(self, media: Any) -> Tensor:
        """Media to x float32 (B, C, *grid)."""
        parts = self.codec.encode(media).split(self.batch)
        z = torch.cat([run_autoencoder(self.autoencoder, "encode", x) for x in parts])
        return (z - self.mean.to(z.device)) / self.std.to(z.device) * SIGMA_DATA

    def decode(self, x: Tensor) -> Any:
        """Samples x to media."""
        parts = self._latents(x).split(self.batch)
        return self.codec.decode(
            torch.cat([run_autoencoder(self.autoencoder, "decode", z) for z in parts])
        )

    def traced(self, x: Tensor) -> Tensor:
        """The same as one graph: of the whole batch, as far as the modality's own codec goes."""
        return self.codec.traced(self.autoencoder.decode(self._latents(x)))

    def save(self, media: Any, path: Path) -> Path:
        """As the modality's own, like all below."""
        return self.codec.save(media, path)

    def preview(self, media: Any) -> Tensor:
        return self.codec.preview(media)

    def play(self, media: Any, path: Path) -> Path:
        return self.codec.play(media, path)

    def seconds(self, media: Any) -> float | None:
        return self.codec.seconds(media)

    def sound(self, media: Any) -> tuple[Tensor, int] | None:
        return self.codec.sound(media)

    def fidelity(self, media: Any, decoded: Any) -> dict[str, Tensor]:
        return self.codec.fidelity(media, decoded)

    def _latents(self, x: Tensor) -> Tensor:
        return x.float() / SIGMA_DATA * self.std.to(x.device) + self.mean.to(x.device)


@torch.no_grad()
def run_autoencoder(autoencoder: Autoencoder, method: str, x: Tensor) -> Tensor:
    """One of the autoencoder's methods, float32, at the precision that the device is fast at."""
    autoencoder.to(x.device)
    fast = resolve_precision("auto", x.device.type) == "bf16-mixed"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=fast):
        return getattr(autoencoder, method)(x).float()


def encoded(sets: dict[str, Dataset], shape: Sequence[int], autoencoder: Autoencoder) -> Table:
    """Both splits' latents and conditions, and mean and std of the training latents a channel."""
    latent_shape(autoencoder, sets["train"].__getitems__([0]).x)
    device = best_device()
    tensors: dict[str, Tensor] = {}
    for split, samples in sets.items():
        parts = torch.arange(len(samples)).split(batch_of(shape))
        for i, part in enumerate(track(parts, f"encoding the {split} split", transient=True)):
            x, condition = samples.__getitems__(part.tolist())
            kept = {} if hasattr(samples, "conditions") else condition  # embeddings are large
            named = {f"condition.{key}": value for key, value in kept.items()}
            named["latents"] = run_autoencoder(autoencoder, "encode", x.to(device)).half().cpu()
            for key, value in named.items():
                if not i:  # filled in place: thousands of small tensors would shred the memory
                    tensors[f"{split}.{key}"] = value.new_empty(len(samples), *value.shape[1:])
                tensors[f"{split}.{key}"][part] = value
    return tensors, per_channel(tensors["train.latents"])


def latent_shape(autoencoder: Autoencoder, x: Tensor) -> tuple[int, ...]:
    """(C, *grid) of latents of samples like x (B, C, *grid).

    UserError where samples do not come back as large as they were.
    """
    x = x.to(best_device())
    z = run_autoencoder(autoencoder, "encode", x)
    back = run_autoencoder(autoencoder, "decode", z)
    if back.shape != x.shape:
        given, found = (" x ".join(map(str, one.shape[1:])) for one in (x, back))
        raise UserError(
            f"the autoencoder makes {found} of samples of {given}: change their size, or how many "
            "frames they have"
        )
    return tuple(z.shape[1:])


def batch_of(shape: Sequence[int]) -> int:
    """How many samples of this shape an autoencoder is given at a time."""
    return max(1, min(BATCH, ELEMENTS // math.prod(shape)))


def fingerprint(network: nn.Module) -> str:
    """A hash of a network's weights and buffers."""
    return files.fingerprint(network.state_dict())
