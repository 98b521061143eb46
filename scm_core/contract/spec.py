"""What a plugin provides, and how the core finds it: the contract between core and modalities."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from scm_core.base.errors import UserError
from scm_core.contract.fields import Condition, Field, Schema

API_VERSION = 1
GROUP = "scm_core.modalities"
SIGMA_DATA = 0.5


class Batch(NamedTuple):
    """Samples x, float32 (B, C, *grid) of mean 0 and std `SIGMA_DATA`, and their conditions."""

    x: Tensor
    condition: Condition


class DataModule(Protocol):
    """What, once set up, knows its samples; a LightningDataModule, or any class with these.

    `shape` is (C, *grid), `condition` the schema, `statistics` what the decoder needs to undo the
    standardisation (plain containers: they travel in the checkpoint). `real` yields what an
    evaluation compares with: batches of the media themselves, tensors (B, ...), of the split
    "train" in random order, or of "test" in the order of `val_dataloader`. Where decoding clips,
    `bounds` says to what: a lowest and a highest x, tensors that broadcast to (C, *grid).

    One may also have `identity`, what its samples are made of on any machine, in plain containers,
    and `standardise(statistics)`, which serves samples by those that a resumed run began with.
    """

    shape: tuple[int, ...]
    condition: Schema
    statistics: dict[str, Any]

    def setup(self, stage: str | None = None) -> None: ...
    def train_dataloader(self) -> Any: ...
    def val_dataloader(self) -> Any: ...
    def real(self, split: str) -> Iterator[tuple[Tensor, Condition]]: ...


class Decoder(Protocol):
    """Between samples and media, for a whole batch; `save` writes one decoded sample.

    `exact` says that `decode` gives back what was encoded; if not, an evaluation also measures
    real media encoded and decoded, the best that samples can be, and, where there is a method
    `fidelity(media, decoded) -> {name: (B,)}`, how near the two are. A decoder of media that are
    played has `seconds(media) -> float`, how long each of them lasts, and
    `sound(media) -> (waveform (samples,), rate in Hz)` where there is something to hear. Where
    `save` writes several files, `play(media, path) -> Path` may write the first of them alone: what
    a page or a client wants at once. One with `traced(x) -> Tensor`, what `decode` does as far as
    that is one graph of tensors, has that part in the files of `scm_core.export`; without it they
    end at x.
    """

    exact: bool

    def encode(self, media: Any) -> Tensor: ...
    def decode(self, x: Tensor) -> Any: ...
    def save(self, media: Any, path: Path) -> Path: ...
    def preview(self, media: Any) -> Tensor: ...


class Features(Protocol):
    """A feature extractor for metrics, (B, D) float32; `name` appears in every figure's name."""

    name: str

    def __call__(self, media: Any) -> Tensor: ...


Judge = Callable[[Any, Condition], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """A modality plugin.

    `config` is a dataclass derived from `contract.config.Config`, `config_file` its defaults and
    `presets` a folder of NAME.yaml. `checkpoints` may hold teacher and student to sample from when
    none is named. `find_data` says where the data are, or raises UserError with how to get them; it
    neither reads nor downloads them. Every `build_*` gets the finished configuration;
    `build_backbone(config, shape, condition)` also the data's statistics, where it has a parameter
    `statistics`. `build_judge` returns per-sample scores of media against their condition, by name.
    `evaluation_samples` replaces the number of samples of an evaluation's preset, and `bars` says
    what two steps ought to reach, by the name of a ratio in `scm_core.evaluation.evaluator.ratios`.
    `fields` are kinds of condition fields that it brings itself, for a checkpoint to find them.

    With `build_autoencoder` samples are latents: given the configuration, the shape of the data
    module's samples and its statistics, it returns a module whose `encode` maps those samples to
    (B, C, *grid) and whose `decode` maps them back, or None where this configuration has none. It
    is trained by the stage `decoder`, unless its attribute `pretrained` is true. See
    `scm_core.data.latents` for what such a data module states.
    """

    name: str
    config: type
    config_file: Path
    presets: Path
    build_data: Callable[[Any], DataModule]
    build_backbone: Callable[..., nn.Module]
    build_decoder: Callable[[Any, dict[str, Any]], Decoder]
    build_features: Callable[[Any], Features]
    build_judge: Callable[[Any, DataModule], Judge]
    build_autoencoder: Callable[[Any, tuple[int, ...], dict], nn.Module | None] | None = None
    find_data: Callable[[Any], Path | str] | None = None
    checkpoints: Path | None = None
    evaluation_samples: Mapping[str, int] = field(default_factory=dict)
    bars: Mapping[str, float] = field(default_factory=dict)
    fields: tuple[type[Field], ...] = ()
    api_version: int = API_VERSION

    def backbone(
        self, config: Any, shape: tuple[int, ...], condition: Schema, statistics: dict[str, Any]
    ) -> nn.Module:
        """A new network, by `build_backbone`."""
        asks = "statistics" in inspect.signature(self.build_backbone).parameters
        more = {"statistics": statistics} if asks else {}
        return self.build_backbone(config, shape, condition, **more)


def get(name: str) -> ModalitySpec:
    """The modality of that name, or at `package.module:SPEC`; imports that one alone.

    Raises UserError for a name that nobody provides or two provide, a plugin that does not import,
    lacks a package or was written for another version of the contract.
    """
    entry = EntryPoint(name=name, value=name, group=GROUP) if ":" in name else _find(name)
    spec = _load(entry)
    if not isinstance(spec, ModalitySpec):
        raise UserError(f"modality {name}: {entry.value} is not a ModalitySpec")
    if spec.api_version != API_VERSION:
        raise UserError(
            f"modality {name} was written for version {spec.api_version} of the plugin contract, "
            f"this scm-core has version {API_VERSION}: install a matching release of either"
        )
    return spec


def installed() -> list[EntryPoint]:
    """The entry points of all installed modalities, by name; nothing is imported."""
    found = {(entry.name, entry.value): entry for entry in entry_points(group=GROUP)}
    return [found[key] for key in sorted(found)]


def _find(name: str) -> EntryPoint:
    entries = installed()
    found = {entry.value: entry for entry in entries if entry.name == name}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        places = " and ".join(sorted(found))
        raise UserError(f"two modalities are called {name}, {places}: name one as modality=PLACE")
    names = sorted({entry.name for entry in entries})
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"installed are: {', '.join(names) or 'none'}"
    raise UserError(f"no modality is called {name}; {hint}")


def _load(entry: EntryPoint) -> Any:
    module, _, attribute = entry.value.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # an import may fail in any way; the sentence says how
        lacking = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and lacking != module.partition(".")[0]:
            reason = f"needs the package {lacking}: pip install {_provider(entry, lacking)}"
            raise UserError(f"modality {entry.name} {reason}") from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"modality {entry.name} ({entry.value}) is broken: {reason}") from error


def _provider(entry: EntryPoint, package: str) -> str:
    """What to install for a package that a plugin lacks: the plugin's extra of its own name."""
    extras = (entry.dist.metadata.get_all("Provides-Extra") or []) if entry.dist else []
    return f"'{entry.dist.name}[{entry.name}]'" if entry.name in extras else package
