"""Exported weights: one safetensors file that is enough alone to sample from.

Its metadata holds the configuration, the sample's shape, the condition schema and the data's
statistics as JSON. Nothing in it can execute code. Weights are stored in half precision, or, by
`shrink`, most of them in 8 bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scm_core.base.arguments import Words
from scm_core.base.device import resolve_precision
from scm_core.base.errors import UserError
from scm_core.base.files import save_tensors
from scm_core.contract import spec as modalities
from scm_core.contract.fields import Condition, Schema, schema_from_dict, schema_to_dict
from scm_core.data.latents import LatentCodec, fingerprint
from scm_core.engine import config as configuration
from scm_core.engine import foreign
from scm_core.engine.replay import Replayed

FORMAT = "scm-core-1"
AUTOENCODER = "autoencoder/"  # before the names of its weights; no module is called so
SCALE = "/scale"  # behind the name of a weight in 8 bits: what its rows are multiplied by
WORTH = 4096  # numbers from which a weight is worth 8 bits
STATED = {"modality": str, "stage": str, "step": int, "sigma_data": float, "shape": list}
STATED |= {"condition": dict, "statistics": dict, "config": dict}
# What a command was told about one run and one machine is not the model's.
OF_THE_RUN = ("stage", "out", "max_steps", "max_time", "limits")
LOOKED_UP = ("modality", "preset")  # before the rest of a configuration is read


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: `backbone` in eval mode with averaged weights, and all about it."""

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
    decoder: modalities.Codec
    places: foreign.Places  # of its data, which an evaluation does not take from a file

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

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


def export(
    path: Path,
    weights: dict[str, Tensor],
    *,
    stage: str,
    step: int,
    config: DictConfig,
    shape: tuple[int, ...],
    condition: Schema,
    statistics: dict[str, Any],
    autoencoder: nn.Module | None = None,
) -> None:
    """Write averaged weights with all that sampling needs, atomically.

    The `autoencoder` is one that was trained here: where it came from elsewhere, it stays there.
    UserError on a full disk, and for weights that are no numbers.
    """
    of_autoencoder = autoencoder.state_dict() if autoencoder else {}
    weights = {**weights, **{AUTOENCODER + key: value for key, value in of_autoencoder.items()}}
    if strange := no_numbers(weights):
        raise UserError(f"{path} is not written: training has diverged, {strange} is no numbers")
    described = {
        "format": FORMAT,
        "modality": config.modality,
        "stage": stage,
        "step": step,
        "sigma_data": modalities.SIGMA_DATA,
        "shape": list(shape),
        "condition": schema_to_dict(condition),
        "statistics": statistics,
        "config": {k: v for k, v in configuration.plain(config).items() if k not in OF_THE_RUN},
    }
    _write(path, {k: _half(v) for k, v in weights.items()}, described)


def shrink(path: Path, target: Path) -> None:
    """Write a checkpoint with its matrices and kernels in 8 bits, about half as large.

    Each of their rows (one output) is rounded to 255 levels of its own, up to its largest number.
    """
    described, weights = read(path)
    packed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.ndim < 2 or value.numel() < WORTH or not value.is_floating_point():
            packed[name] = value
            continue
        rows = value.float().flatten(1)
        scale = (rows.abs().amax(1) / 127).half().float().clamp(min=2.0**-24)
        packed[name] = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        packed[name] = packed[name].view(value.shape)
        packed[name + SCALE] = scale.half()
    _write(target, packed, described)


def _write(path: Path, weights: dict[str, Tensor], described: dict[str, Any]) -> None:
    save_tensors(path, weights, {key: json.dumps(value) for key, value in described.items()})


def load(
    path: str | Path,
    modality: str | None = None,
    device: torch.device | str = "cpu",
    decoder: Words | None = None,
) -> Checkpoint:
    """Read an exported checkpoint onto a device; words of the section `decoder` replace its own.

    Raises UserError for a missing or unreadable file, one of another modality than `modality`, and
    weights that do not fit the backbone its configuration describes. A modality that is not
    installed is imported only if `modality` is it too: a file may not choose what code runs.
    """
    path = Path(path)
    described, weights = read(path)
    name = described["modality"]
    if modality and name != modality:
        raise UserError(f"{path} holds a model of {name}, not of {modality}")
    if ":" in name and not modality:
        raise UserError(
            f"{path} is of a plugin that is not installed, {name!r}; no file chooses what code "
            "runs: name by modality= the one that you know and trust"
        )
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
    words: Words,
) -> Checkpoint:
    ignored = (*OF_THE_RUN, *LOOKED_UP)
    stated = {k: v for k, v in described["config"].items() if k not in ignored}
    base = configuration.defaults(spec)
    places: foreign.Places = {}
    if not _ships(spec, path):
        foreign.bound(described, stated, weights)
        stated, places = foreign.without_places(stated, base)
    config = configuration.merge(base, (str(path), OmegaConf.create(stated)))
    config.modality = described["modality"]
    config = configuration.merge(config, ("command line", words))
    of_data = {key: places.pop(key) for key in list(places) if key.startswith("data.")}
    foreign.refuse(path, places, words)
    shape = tuple(described["shape"])
    condition = schema_from_dict(described["condition"], spec.fields)
    weights, of_autoencoder = split(weights)
    about = shape, condition, described["statistics"]
    backbone = _network(lambda: spec.backbone(config, *about), weights, path)
    with foreign.Bounded(weights, path):
        decoder = spec.codec(config, described["statistics"])
    if latents := described["statistics"].get("latents"):
        autoencoder = build_autoencoder(spec, config, described["statistics"], of_autoencoder, path)
        decoder = LatentCodec(autoencoder, decoder, latents)
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
        decoder=decoder,
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


def split(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's weights as those of its backbone and those of its autoencoder, if any."""
    of_autoencoder = {
        k.removeprefix(AUTOENCODER): v for k, v in weights.items() if k.startswith(AUTOENCODER)
    }
    return {k: v for k, v in weights.items() if not k.startswith(AUTOENCODER)}, of_autoencoder


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and weights of an exported checkpoint; UserError when it is not one."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: train one, or name another by checkpoint=")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if json.loads(metadata.get("format", "null")) != FORMAT:
                raise UserError(f"{path} was not written by this version of scm-core")
            weights = {key: file.get_tensor(key) for key in file.keys()}
            described = {key: json.loads(value) for key, value in metadata.items()}
            if wrong := [k for k, kind in STATED.items() if type(described.get(k)) is not kind]:
                raise UserError(f"{path} does not state its {wrong[0]}")
            if "${" in json.dumps(described["config"]):  # as read: its own text may hide it
                raise UserError(f"{path} has a configuration with ${{...}}, which is not looked up")
            _check_stated(path, described)
            weights = _unpacked(weights, path)
            if strange := no_numbers(weights):
                raise UserError(
                    f"{path} holds weights that are no numbers ({strange}): its training had "
                    "diverged, or it is damaged"
                )
            return described, weights
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error


def _check_stated(path: Path, described: dict[str, Any]) -> None:
    """UserError for numbers that no model has."""
    shape = described["shape"]
    possible = {
        "sigma_data": 1e-3 <= described["sigma_data"] <= 1e3,
        "shape": len(shape) > 1 and all(type(size) is int and size > 0 for size in shape),
        "step": described["step"] >= 0,
    }
    if wrong := [key for key, is_possible in possible.items() if not is_possible]:
        raise UserError(f"{path} states {wrong[0]}={described[wrong[0]]}, which no model has")


def no_numbers(weights: dict[str, Tensor]) -> str | None:
    """The name of the first weight that holds NaN or infinity, if there is one."""
    strange = (
        name
        for name, value in weights.items()
        if value.is_floating_point() and not value.float().isfinite().all()
    )
    return next(strange, None)


def _network(build: Callable[[], nn.Module], weights: dict[str, Tensor], source: Path) -> nn.Module:
    """What `build` makes, with these weights; it takes no memory before they are known to fit."""
    # Some networks read numbers while they are built, which "meta" has not: the real one decides.
    bounded = foreign.Bounded(weights, source)
    with bounded, contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"):
        _check(build(), weights, source)
    with foreign.Bounded(weights, source):
        network = build()
    load_weights(network, weights, source)
    return network


def _check(network: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """UserError for the first of these weights that does not fit the network."""
    expected = network.state_dict()
    wrong = [k for k in expected if k not in weights or weights[k].shape != expected[k].shape]
    wrong += [k for k in weights if k not in expected]
    if wrong:
        raise UserError(f"{source} holds another backbone: {wrong[0]} does not fit")


def load_weights(backbone: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Strictly load weights into a backbone; UserError names the first that does not fit."""
    _check(backbone, weights, source)
    backbone.load_state_dict(weights)


def _unpacked(weights: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Weights as numbers, where `shrink` has put them into 8 bits."""
    found = {}
    for name, value in weights.items():
        if name.endswith(SCALE):
            continue
        scale = weights.get(name + SCALE)
        if scale is not None:
            if scale.shape != value.shape[:1]:
                raise UserError(f"{source} has other scales than rows in {name}")
            value = value.float() * scale.float().view(-1, *[1] * (value.ndim - 1))
        found[name] = value
    return found


def _half(value: Tensor) -> Tensor:
    """In float16 where every weight fits its range, which halves the file."""
    value = value.detach().cpu().contiguous()
    fits = value.is_floating_point() and value.abs().amax() < torch.finfo(torch.float16).max
    return value.half() if fits else value
