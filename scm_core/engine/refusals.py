"""What a training refuses before it reads any data, rather than hours later."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from scm_core.base import distributed
from scm_core.base.device import resolve_precision
from scm_core.base.errors import UserError, first_line
from scm_core.contract import objectives
from scm_core.engine import storage
from scm_core.engine.config import check_last_time
from scm_core.engine.directory import student_begun
from scm_core.engine.stages.stage import OPTIMIZERS, TANGENTS
from scm_core.method.ema import power_exponent
from scm_core.networks import backbones, lora

STAGES = ("decoder", "teacher", "student")
CHOICES = {
    "student.method": ("distill", "train"),
    "student.tangent": TANGENTS,
    "student.optimizer": OPTIMIZERS,
    # Not Lightning's others: weights, and what averages them, are float32.
    "trainer.precision": ("auto", "32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16"),
}
AT_LEAST_1 = (
    *("max_steps", *(f"{stage}.max_steps" for stage in STAGES), "data.batch_size"),
    *("trainer.accumulate", "trainer.checkpoint_every", "trainer.preview_every"),
    *("trainer.log_every", "limits.pixels", "limits.frames", "limits.bytes"),
)
AT_LEAST_0 = ("data.workers", "trainer.ema_snapshots", *(f"{stage}.lr_warmup" for stage in STAGES))
ABOVE_0 = (
    *(f"{stage}.lr" for stage in STAGES),
    *("teacher.P_std", "limits.seconds", "trainer.gradient_clip"),
)
SHARES = ("teacher.condition_dropout",)


def check(settings: DictConfig) -> None:
    """UserError for values that a stage would stumble over, which may be hours after the first."""
    for key, known in CHOICES.items():
        if (value := OmegaConf.select(settings, key)) not in known:
            raise UserError(f"{key}={value} is none of {', '.join(known)}")
    for keys, fits, what in (
        (AT_LEAST_1, lambda value: value >= 1, "at least 1"),
        (AT_LEAST_0, lambda value: value >= 0, "at least 0"),
        (ABOVE_0, lambda value: 0 < value < math.inf, "a number above 0"),
        (SHARES, lambda value: 0 <= value <= 1, "between 0 and 1"),
        (("student.guidance",), lambda value: 0 <= value < math.inf, "a number from 0 on"),
    ):
        for key in keys:
            value = OmegaConf.select(settings, key)
            if value is not None and not fits(value):
                raise UserError(f"{key}={value} must be {what}")
    for name in STAGES:
        if (ema := OmegaConf.select(settings, f"{name}.ema")) is not None:
            try:
                power_exponent(ema)
            except ValueError as error:
                raise UserError(f"{name}.{error}") from error
    if settings.stage not in (None, *STAGES):
        raise UserError(f"stage={settings.stage} is none of {', '.join(STAGES)}")
    pretrained = settings.get("pretrained")
    if pretrained and OmegaConf.select(settings, "decoder.pretrained"):
        raise UserError("pretrained= brings its own autoencoder: leave decoder.pretrained out")
    done = pretrained or (Path(settings.out) / "student.safetensors").exists()
    if settings.stage == "student" and not done:
        trained(Path(settings.out), "teacher")
    if settings.max_time is not None:
        duration(settings.max_time)
    backbone = settings.get("backbone")
    if OmegaConf.get_type(backbone) is backbones.BackboneConfig:  # a plugin's own may derive
        backbones.check(backbone)
    _check_student(settings.student, pretrained)
    _check_init(settings)
    check_last_time(settings.student)
    lora.check(*(settings.student.lora[key] for key in ("rank", "alpha", "targets")))
    if settings.student.lora.rank and settings.trainer.compile and settings.trainer.recompute:
        raise UserError("student.lora.rank goes with trainer.compile or .recompute, not with both")
    trainer_of(settings.trainer, logger=False, enable_checkpointing=False)


def _check_student(student: DictConfig, pretrained: str | None) -> None:
    """UserError for phases and options that cannot be, and without a teacher what follows one."""
    named = {name for phase in objectives.phases(student) for name in phase.weights}
    for name in {*named, *student.options}:
        objectives.options(name, student.options.get(name, {}))
    strange = [name for name in named if pretrained and objectives.get(name).negative_times]
    if strange:
        raise UserError(
            f"{strange[0]} asks the network at times below 0, which pretrained={pretrained} does "
            "not know: leave it out of student.phases"
        )
    led = sorted(name for name in named if objectives.get(name).needs_teacher)
    if student.method == "train" and (led or student.guidance != 1):
        raise UserError(
            "student.method=train has no teacher, which guidance and the objectives endpoint and "
            "distribution_matching follow: give student.guidance=1 and "
            "student.phases=[{consistency: 1, steps: 1000}] or the like"
        )


def check_methods(student: DictConfig, backbone: nn.Module) -> None:
    """UserError for an objective that calls what the backbone has not, as an autoencoder's does."""
    for name in {name for phase in objectives.phases(student) for name in phase.weights}:
        for method in objectives.get(name).methods:
            if not hasattr(backbone, method):
                raise UserError(f"student.phases: {name} needs a backbone with {method}()")


def _check_init(settings: DictConfig) -> None:
    """UserError for weights that a student cannot begin with."""
    given, out = settings.student.init_from, Path(settings.out)
    if given is None or student_begun(out):  # which has its weights by now
        return
    if settings.get("pretrained") or settings.student.lora.rank:
        raise UserError(
            "student.init_from goes with a teacher that was trained here and all of its weights: "
            "without pretrained= and student.lora.rank"
        )
    if not Path(given).is_file():
        raise UserError(f"student.init_from={given} is no file: name an exported student")
    if Path(given).resolve() == (out / "student.safetensors").resolve():
        raise UserError(
            f"student.init_from={given} is what this run would write: choose another out=, with "
            "the teacher.safetensors of that student in it"
        )
    described = storage.read(Path(given))[0]
    found = described["stage"], described["modality"]
    if found != ("student", settings.modality):
        raise UserError(f"student.init_from={given} is a {found[0]} of {found[1]}")


def trainer_of(options: Any, **more: Any) -> Trainer:
    """Lightning's Trainer by the section `trainer`; UserError for what Lightning refuses."""
    strategy = options.strategy
    try:
        if strategy == "fsdp":  # the second, whose shards Dual goes through; whole checkpoints
            strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
        return Trainer(
            accelerator=options.accelerator,
            **distributed.devices(options.devices),
            strategy=strategy,
            precision=resolve_precision(options.precision, options.accelerator),
            benchmark=True,  # batches have one shape: cuDNN may look for its fastest kernels
            accumulate_grad_batches=options.accumulate,
            gradient_clip_val=options.gradient_clip,
            enable_progress_bar=False,
            enable_model_summary=False,
            **more,
        )
    except Exception as error:  # of many kinds
        raise UserError(f"trainer.*: {first_line(error)}") from error


def trained(folder: Path, stage: str) -> Path:
    """What a stage has exported into a run directory; UserError where it has not."""
    weights = folder / f"{stage}.safetensors"
    if not weights.exists():
        raise UserError(f"no {stage} at {weights}: train it first, by stage={stage}")
    return weights


def duration(text: str) -> datetime.timedelta:
    """`DD:HH:MM:SS` or `HH:MM:SS`; UserError for anything else."""
    match = re.fullmatch(r"(?:(\d{1,6}):)?(\d{1,6}):(\d{1,6}):(\d{1,6})", text)
    if not match:
        raise UserError(f"max_time={text} is not DD:HH:MM:SS or HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return datetime.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
