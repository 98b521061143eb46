"""A checkpoint that is loaded: the model of an exported file, and all about it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from scm_core.base.arguments import Overrides
from scm_core.base.device import resolve_precision
from scm_core.base.errors import UserError
from scm_core.contract import spec as modalities
from scm_core.contract.fields import Condition, Schema, schema_from_dict
from scm_core.data.latents import LatentCodec, fingerprint
from scm_core.engine import config as configuration
from scm_core.engine import foreign, pretrained
from scm_core.engine.replay import Replayed
from scm_core.engine.storage import OF_THE_RUN, adapted, read_whole, split
from scm_core.method import samplers

LOOKED_UP = ("modality", "preset")  # before the rest of a configuration is read


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: `backbone` in eval mode with EMA weights, and all about it."""

    path: Path
    stage: str
    step: int
    spec: modalities.ModalitySpec
    config: DictConfig
    shape: tuple[int, ...]
    condition: Schema
    statistics: dict[str, Any]
    sigma_data: float
    backbone: nn.Module
    codec: modalities.Codec
    places: foreign.Places  # of its data, which an evaluation does not take from a file

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    @property
    def ends(self) -> tuple[float, float]:
        """The times of a student's first and last step of several."""
        return samplers.ends(self.backbone, self.config.student.last_time, self.sigma_data)

    @cached_property
    def sha256(self) -> str:
        """Of the file, read once."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of the data module's samples: the model's own, or what its autoencoder is given."""
        latents = self.statistics.get("latents")
        return tuple(latents["of"]) if latents else self.shape

    @cached_property
    def model(self) -> Replayed:
        """F at the precision the device is fast at: bf16 autocast where it is native."""
        return Replayed(self._evaluate, self.backbone)

    def _evaluate(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        fast = resolve_precision("auto", self.device.type) == "bf16-mixed"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            return self.backbone(x, t, condition)


def load(
    path: str | Path,
    modality: str | None = None,
    device: torch.device | str = "cpu",
    decoder: Overrides | None = None,
) -> Checkpoint:
    """Read an exported checkpoint onto a device; `decoder` are overrides of its configuration.

    Raises UserError for a missing or unreadable file, one of another modality than `modality`, and
    weights that do not fit the backbone its configuration describes. A modality that is not
    installed is imported only if `modality` is it too: a file may not choose what code runs.
    """
    path = Path(path)
    described, weights = read_whole(path)
    name = described["modality"]
    if modality and name != modality:
        raise UserError(f"{path} holds a model of {name}, not of {modality}")
    if ":" in name and not modality:
        raise UserError(
            f"{path} is of a plugin that is not installed, {name!r}; no file chooses what code "
            "runs: name by modality= the one that you know and trust"
        )
    if described["stage"] == "decoder":
        raise UserError(f"{path} holds a decoder, which draws nothing: name a teacher or student")
    spec = modalities.get(name)
    try:
        return _built(path, spec, described, weights, device, decoder or {})
    except UserError:
        raise
    except Exception as error:  # a file may describe anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} describes no model of {name}: {reason}") from error


def _built(
    path: Path,
    spec: modalities.ModalitySpec,
    described: dict[str, Any],
    weights: dict[str, Tensor],
    device: torch.device | str,
    overrides: Overrides,
) -> Checkpoint:
    ignored = (*OF_THE_RUN, *LOOKED_UP)
    stated = {k: v for k, v in described["config"].items() if k not in ignored}
    base = configuration.defaults(spec)
    places: foreign.Places = {}
    ours, named = _ships(spec, path), overrides.get("pretrained")
    if not ours:
        if not named:  # else what its weights account for is known later
            foreign.bound(described, stated, weights)
        stated, places = foreign.without_places(stated, base)
    config = configuration.merge(base, (str(path), OmegaConf.create(stated)))
    config.modality = described["modality"]
    config = configuration.merge(config, ("command line", overrides))
    configuration.check_last_time(config.student)
    of_data = {
        key: places.pop(key)
        for key in list(places)
        if key.startswith("data.") and key not in overrides
    }
    foreign.refuse(path, places, overrides)
    shape = tuple(described["shape"])
    try:
        condition = schema_from_dict(described["condition"], spec.fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    condition = {key: field.configured(config) for key, field in condition.items()}
    weights, of_autoencoder = split(weights)
    about = shape, condition, described["statistics"]
    if config.get("pretrained"):
        backbone = spec.backbone(config, *about)
        weights = complete(backbone, weights, described, path)
        if not ours:
            foreign.bound(described, stated, weights)
        pretrained.slow_as_trained(backbone, described, condition)
    else:
        backbone = _network(lambda: spec.backbone(config, *about), weights, path)
    with foreign.Bounded(weights, path):
        codec = spec.codec(config, described["statistics"])
    if latents := described["statistics"].get("latents"):
        autoencoder = build_autoencoder(spec, config, described["statistics"], of_autoencoder, path)
        codec = LatentCodec(autoencoder, codec, latents)
    return Checkpoint(
        path=path,
        stage=described["stage"],
        step=described["step"],
        spec=spec,
        config=config,
        shape=shape,
        condition=condition,
        statistics=described["statistics"],
        sigma_data=described["sigma_data"],
        backbone=backbone.to(device).eval(),
        codec=codec,
        places=of_data,
    )


def _ships(spec: modalities.ModalitySpec, path: Path) -> bool:
    """Whether a file came with the plugin, and is as good as its code."""
    return bool(spec.checkpoints) and path.resolve().is_relative_to(spec.checkpoints.resolve())


def build_autoencoder(
    spec: modalities.ModalitySpec,
    config: DictConfig,
    statistics: dict[str, Any],
    weights: dict[str, Tensor],
    source: Path,
) -> nn.Module:
    """The autoencoder of a checkpoint's latents, by its `weights` unless it is a pretrained one.

    Raises UserError when it is not the one that the checkpoint's samples are latents of.
    """
    latents = statistics["latents"]

    def build() -> nn.Module:
        return spec.autoencoder(config, tuple(latents["of"]), statistics)

    if weights:
        return _network(build, weights, source)
    autoencoder = build()
    if autoencoder is None or fingerprint(autoencoder) != latents["autoencoder"]:
        raise UserError(f"{source} holds latents of another autoencoder than the one configured")
    return autoencoder


def complete(
    backbone: nn.Module, weights: dict[str, Tensor], described: dict[str, Any], source: Path
) -> dict[str, Tensor]:
    """Load weights into a pretrained backbone, and return them with what they lack and it has.

    UserError where they lack some of another pretrained model.
    """
    known = backbone.state_dict()
    if "lora" in described:
        weights = adapted(known, weights, described["lora"], source)
    if known.keys() - weights.keys() and described.get("source") != backbone.source:
        raise UserError(f"{source} is of another pretrained model than the one that pretrained= is")
    found = {**known, **weights}
    load_weights(backbone, found, source)
    return found


def _network(build: Callable[[], nn.Module], weights: dict[str, Tensor], source: Path) -> nn.Module:
    """What `build` makes, with these weights; it takes no memory before they are known to fit."""
    # Some networks read numbers while they are built, which "meta" has not: the real one decides.
    bounded = foreign.Bounded(weights, source)
    with bounded, contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"):
        check_weights(build(), weights, source)
    with foreign.Bounded(weights, source):
        network = build()
    load_weights(network, weights, source)
    return network


def check_weights(network: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """UserError for the first of these weights that does not fit the network."""
    expected = network.state_dict()
    wrong = [k for k in expected if k not in weights or weights[k].shape != expected[k].shape]
    wrong += [k for k in weights if k not in expected]
    if wrong:
        raise UserError(f"{source} holds another backbone: {wrong[0]} does not fit")


def load_weights(backbone: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Strictly load weights into a backbone; UserError names the first that does not fit."""
    check_weights(backbone, weights, source)
    backbone.load_state_dict(weights)
