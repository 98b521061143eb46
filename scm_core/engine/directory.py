"""What lies in a run directory, and whether a configuration may go on with it."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from scm_core.base.errors import UserError
from scm_core.engine import config, storage
from scm_core.engine.checkpointing import LAST
from scm_core.networks import lora

# What a student is; one with other values is another.
STATED = "student.guidance", "student.method"
LORA = tuple(f"student.lora.{key}" for key in ("rank", "alpha", "targets"))
INIT = "student/init_from"  # the fingerprint of the weights that a student began with


def check(folder: Path, settings: DictConfig) -> None:
    """UserError where it holds another run, or a student that was asked for otherwise."""
    saved, exported = folder / "config.yaml", folder / "student.safetensors"
    # A teacher alone is asked for without a word of LoRA.
    asked = (*STATED, *LORA) if settings.stage in (None, "student") else STATED
    if saved.exists():
        kept = ["student.init_from", *asked] if student_begun(folder) else []
        keys = "modality", "backbone", *kept
        _check_same(folder, config.read_yaml(saved), settings, *keys)
    if exported.exists():
        stated = OmegaConf.create(storage.read(exported)[0]["config"])
        _check_same(folder, stated, settings, *(key for key in asked if _states(stated, key)))


def _states(config: DictConfig, key: str) -> bool:
    section, _, name = key.rpartition(".")
    return name in (OmegaConf.select(config, section) or {})


def _check_same(folder: Path, before: DictConfig, settings: DictConfig, *keys: str) -> None:
    for key in keys:
        was, now = (OmegaConf.select(each, key) for each in (before, settings))
        if was != now:
            values = "" if OmegaConf.is_config(now) else f" ({was}, now {now})"
            raise UserError(f"{folder} holds a run with another {key}{values}: choose another out=")


def needed(folder: Path, stage: str) -> str | None:
    """Why a stage that has exported its weights may not change them any more, if so."""
    if stage == "decoder" and (folder / "latents.json").exists():
        return "the teacher learns its latents"
    if stage == "teacher":
        exported = folder / "student.safetensors"
        if _lora_begun(folder) or (exported.exists() and "lora" in storage.read(exported)[0]):
            return "a LoRA student is nothing without it"
    return None


def _lora_begun(folder: Path) -> bool:
    """Whether what can be resumed is a student of adapters alone."""
    path = folder / "student" / LAST
    try:
        held = torch.load(path, weights_only=True, map_location="cpu", mmap=True)["state_dict"]
    except Exception:  # there is none, or its own stage says what is wrong with it
        return False
    return any(key.endswith(lora.A) for key in held)


def student_begun(folder: Path) -> bool:
    """Whether a student can be resumed."""
    return (folder / "student" / LAST).exists()
