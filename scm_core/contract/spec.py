"""What a plugin provides, and how the core finds it: the contract between core and modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from scm_core.base.errors import UserError
from scm_core.contract import plugins
from scm_core.contract.config import Config
from scm_core.contract.fields import Field, Schema
from scm_core.contract.parts import SIGMA_DATA as SIGMA_DATA  # plugins import the contract here
from scm_core.contract.parts import Autoencoder, Codec, DataModule, Features, Scorer
from scm_core.contract.parts import Batch as Batch

Shape = tuple[int, ...]
Statistics = dict[str, Any]
AnyConfig = Config | DictConfig
API_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """A modality plugin.

    `config` is a dataclass derived from `contract.config.Config`, `config_file` its defaults and
    `presets` a folder of NAME.yaml. `checkpoints` may hold teacher and student to sample from when
    none is named. `find_data` says where the data are, or raises UserError with how to get them; it
    neither reads nor downloads them. Every `build_*` gets the finished configuration, an object of
    the class `config`; the core calls them by the methods below.
    `build_features` gives one or several extractors: choices are made in the first alone, the
    others, and the scorer's, only report. `evaluation_samples` replaces the number of samples of an
    evaluation's preset, and `targets` say what two steps ought to reach, by the name of a ratio in
    `scm_core.evaluation.ratios`, which reads them by `judged`.
    `fields` are kinds of condition fields that it brings itself, for a checkpoint to find them.

    With `build_autoencoder` samples are latents of what it returns, given the configuration, the
    shape of the data module's samples and its statistics: None where this configuration has none.
    The stage `decoder` trains it, unless it is a pretrained one.
    """

    name: str
    config: type[Config]
    config_file: Path
    presets: Path
    build_data: Callable[[Any], DataModule]
    build_backbone: Callable[[Any, Shape, Schema, Statistics], nn.Module]
    build_codec: Callable[[Any, Statistics], Codec]
    build_features: Callable[[Any], Features | Sequence[Features]]
    build_scorer: Callable[[Any, DataModule], Scorer] = lambda config, data: Scorer()
    build_autoencoder: Callable[[Any, Shape, Statistics], Autoencoder | None] = (
        lambda config, shape, statistics: None
    )
    find_data: Callable[[Any], Path | str] | None = None
    checkpoints: Path | None = None
    evaluation_samples: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[str, float] = field(default_factory=dict)
    fields: tuple[type[Field], ...] = ()
    api_version: int = API_VERSION

    def data(self, config: AnyConfig) -> DataModule:
        """The data module, not yet set up."""
        return self.build_data(_object(config))

    def backbone(
        self, config: AnyConfig, shape: Shape, condition: Schema, statistics: Statistics
    ) -> nn.Module:
        """A new network."""
        return self.build_backbone(_object(config), shape, condition, statistics)

    def codec(self, config: AnyConfig, statistics: Statistics) -> Codec:
        """Between samples and media, by the data's statistics."""
        return self.build_codec(_object(config), statistics)

    def autoencoder(
        self, config: AnyConfig, shape: Shape, statistics: Statistics
    ) -> Autoencoder | None:
        """A new one of samples of that shape, where this configuration has one."""
        return self.build_autoencoder(_object(config), shape, statistics)

    def features(self, config: AnyConfig) -> tuple[Features, ...]:
        """The feature extractors of an evaluation, of which the first is the chooser."""
        found = self.build_features(_object(config))
        return tuple(found) if isinstance(found, Sequence) else (found,)

    def scorer(self, config: AnyConfig, data: DataModule) -> Scorer:
        """The scorer of an evaluation, of data that have been set up."""
        return self.build_scorer(_object(config), data)

    def location(self, config: AnyConfig) -> Path | str:
        """Where the data are, by `find_data`."""
        return self.find_data(_object(config))


def _object(config: AnyConfig) -> Config:
    """The configuration as an object of the plugin's own class, which knows no OmegaConf."""
    return OmegaConf.to_object(config) if isinstance(config, DictConfig) else config


def get(name: str) -> ModalitySpec:
    """The modality of that name, or at `package.module:SPEC`; imports that one alone.

    Raises UserError for a name that nobody provides or two provide, a plugin that does not import,
    lacks a package or was written for another version of the contract.
    """
    entry = plugins.find("modality", name)
    spec = plugins.load("modality", entry)
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
    return plugins.installed("modality")
