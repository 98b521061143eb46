"""Exported weights on disk: one safetensors file that is enough alone to sample from.

Its metadata holds the configuration, the sample's shape, the condition schema and the data's
statistics as JSON. Nothing in it can execute code. Weights are stored in half precision, or, by
`shrink`, most of them in 8 bits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scm_core.base.errors import UserError, first_line
from scm_core.base.files import fingerprint, save_tensors
from scm_core.contract.fields import Schema, schema_to_dict
from scm_core.contract.spec import SIGMA_DATA
from scm_core.engine import config as configuration
from scm_core.networks import lora

FORMAT = "scm-core-1"
TEACHER = "teacher.safetensors"  # beside a student
AUTOENCODER = "autoencoder/"  # before the names of its weights; no module is called so
SCALE = "/scale"  # behind the name of a weight in 8 bits: what its rows are multiplied by
WORTH = 4096  # numbers from which a weight is worth 8 bits
STATED = {"modality": str, "stage": str, "step": int, "sigma_data": float, "shape": list}
STATED |= {"condition": dict, "statistics": dict, "config": dict}
# What a command was told about one run and one machine is not the model's.
OF_THE_RUN = ("stage", "out", "max_steps", "max_time", "limits")


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
    source: str | None = None,
    adapter: dict[str, Any] | None = None,
    init_from: str | None = None,
) -> None:
    """Write EMA weights with all that sampling needs, atomically.

    The `autoencoder` is one that was trained here: where it came from elsewhere, it stays there.
    Weights that a pretrained model has may be left out: `source` is its hash. Those of an `adapter`
    (see `scm_core.networks.lora.described`) need its teacher's, and with it its autoencoder's.
    `init_from` is the fingerprint of the weights that it began with, of another student.
    UserError on a full disk, and for weights that are NaN or Inf.
    """
    of_autoencoder = autoencoder.state_dict() if autoencoder and not adapter else {}
    weights = {**weights, **{AUTOENCODER + key: value for key, value in of_autoencoder.items()}}
    if strange := no_numbers(weights):
        raise UserError(f"{path} is not written: training has diverged, {strange} is NaN or Inf")
    stated = {k: v for k, v in configuration.plain(config).items() if k not in OF_THE_RUN}
    stated["student"].pop("init_from", None)  # it names a place: its fingerprint is stated
    described = {
        "format": FORMAT,
        "modality": config.modality,
        "stage": stage,
        "step": step,
        "sigma_data": SIGMA_DATA,
        "shape": list(shape),
        "condition": schema_to_dict(condition),
        "statistics": statistics,
        "config": stated,
        **({"source": source} if source else {}),
        **({"lora": adapter} if adapter else {}),
        **({"init_from": init_from} if init_from else {}),
    }
    _write(path, {k: _half(v) for k, v in weights.items()}, described)


def rewrite(path: Path, target: Path, weights: dict[str, Tensor], ema: float) -> None:
    """Write a checkpoint with other EMA weights of its network, which are of the width `ema`."""
    described, before = read(path)
    if split(before)[0].keys() != weights.keys():
        raise UserError(f"{path} is of another network than those weights")
    described["config"][described["stage"]]["ema"] = ema
    _write(target, {k: _half(v) for k, v in {**before, **weights}.items()}, described)


def restate(path: Path, last_time: float) -> None:
    """Have a student's file say another time at which its sampler looks last."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        weights = {key: file.get_tensor(key) for key in file.keys()}
    config = json.loads(metadata["config"])
    config["student"]["last_time"] = last_time
    save_tensors(path, weights, {**metadata, "config": json.dumps(config)})


def shrink(path: Path, target: Path) -> None:
    """Write a checkpoint with its matrices and kernels in 8 bits, about half as large.

    Each of their rows (one output) is rounded to 255 levels of its own, up to its largest number.
    An adapter is merged before: its teacher would be another one in 8 bits.
    """
    described, weights = read_whole(path)
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


def merge(path: Path, whole: dict[str, Tensor] | None = None) -> None:
    """Rewrite a LoRA student with whole weights, which need no teacher beside them.

    They are given where the teacher is pretrained, and not there.
    """
    described, weights = read_whole(path)
    if whole is not None:
        weights = whole
        del described["lora"]
    _write(path, {key: _half(value) for key, value in weights.items()}, described)


def _write(path: Path, weights: dict[str, Tensor], described: dict[str, Any]) -> None:
    save_tensors(path, weights, {key: json.dumps(value) for key, value in described.items()})


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
                    f"{path} holds weights that are NaN or Inf ({strange}): its training had "
                    "diverged, or it is damaged"
                )
            return described, weights
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error


def read_whole(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As `read`; an adapter's weights are merged into those of its teacher, which lies beside it.

    UserError where no teacher is there, or another one. Of a pretrained teacher they stay alone.
    """
    described, weights = read(path)
    if "lora" not in described or described["config"].get("pretrained"):
        return described, weights
    teacher = path.with_name(TEACHER)
    if not teacher.is_file():
        raise UserError(f"{path} holds a LoRA of a teacher: put its {TEACHER} beside it")
    return described, adapted(read(teacher)[1], weights, described.pop("lora"), path)


def adapted(
    base: dict[str, Tensor], weights: dict[str, Tensor], adapter: dict[str, Any], source: Path
) -> dict[str, Tensor]:
    """A teacher's weights with those of an adapter; UserError where it is not of that teacher."""
    try:
        if fingerprint(split(base)[0]) != adapter["base"]:
            raise UserError(f"{source} holds a LoRA of another teacher than the one that is there")
        return lora.merged(base, weights, adapter["alpha"] / adapter["rank"])
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"{source} holds no LoRA of its teacher: {first_line(error)}") from error


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
    if not value.is_floating_point() or not value.numel():
        return value
    return value.half() if value.abs().amax() < torch.finfo(torch.float16).max else value
