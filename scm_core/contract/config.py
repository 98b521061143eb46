"""The keys that every modality shares, as dataclasses.

A plugin derives its own from `Config` and adds the sections `data`, `backbone` and whatever else it
needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from scm_core.base.arguments import place
from scm_core.method.samplers import LAST_TIME


@dataclass
class Limits:
    """What a media file may be at most; one that is more is skipped like one that is broken.

    `pixels` of a picture or of a video's frame; `seconds` of a recording or video; `frames` of a
    video; `bytes` in memory, of a picture's file or of what is kept of a recording or video.
    """

    pixels: int = 89_478_485
    seconds: float = 14_400.0
    frames: int = 1_000_000
    bytes: int = 4_294_967_296

    def check(self, **found: float) -> None:
        """ValueError for the first of these that is more than the limit of its name."""
        for key, value in found.items():
            if value > (limit := getattr(self, key)):
                raise ValueError(f"{value:.0f} {key} are more than limits.{key}={limit:.0f}")

    def check_square(self, width: int, height: int, size: int | None) -> None:
        """ValueError where resizing the shorter side to ``size`` makes too long a strip."""
        if size is not None:
            self.check(pixels=size * size * max(width, height) / max(1, min(width, height)))


@dataclass
class AutoencoderConfig:
    """The stage `decoder`, where samples are latents; a plugin derives its section `decoder` from
    this. `ema` is the relative width of the power-function average."""

    max_steps: int = 20_000
    lr: float = 1e-3
    lr_warmup: int = 200
    ema: float = 0.05


@dataclass
class TeacherConfig:
    """The diffusion teacher. `ema` is the relative width of the power-function average;
    `P_mean` and `P_std` shape the proposal over t."""

    max_steps: int = 100_000
    lr: float = 1e-3
    lr_warmup: int = 500
    ema: float = 0.05
    condition_dropout: float = 0.1
    P_mean: float = -0.8
    P_std: float = 1.6


@dataclass
class LoRAConfig:
    """Low-rank adapters in the place of full fine-tuning: with a `rank`, the student is the frozen
    teacher with an adapter, W + (alpha / rank) B A in every layer. `alpha` is by default the rank;
    `targets` are the ends of layers' names (`qkv`, `attn1.to_q`), by default all linear layers and
    convolutions; with `merge` the exported student holds whole weights and needs no teacher."""

    rank: int | None = None
    alpha: float | None = None
    targets: list[str] = field(default_factory=list)
    merge: bool = False


@dataclass
class StudentConfig:
    """The student. `method` is `distill` (from the teacher) or `train` (from data alone, started
    from the teacher's weights); `guidance` is that of the teacher it follows. `phases` are what it
    learns from, one after another: weights of objectives by name, `steps`, and `lr` and `lr_warmup`
    where they differ from those here. `max_steps` ends the last phase elsewhere than its steps say.
    `optimizer` is `adam` or `radam`. `options` are the objectives' own, by their names; `tangent`
    is how dF/dt is found, exactly (`dual`) or by a `difference`; `lora` trains adapters alone.
    `last_time` is where its sampler looks last, of two and more steps. `init_from` is another
    student, by whose weights this one begins in the place of the teacher's."""

    method: str = "distill"
    init_from: str | None = place()
    phases: list[dict[str, Any]] = field(
        default_factory=lambda: [{"consistency": 1.0, "steps": 100_000}]
    )
    max_steps: int | None = None
    lr: float = 3e-4
    lr_warmup: int = 100
    optimizer: str = "adam"
    ema: float = 0.05
    guidance: float = 1.0
    last_time: float = LAST_TIME
    tangent: str = "dual"
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainerConfig:
    """What Lightning's Trainer is told. `precision` auto is bf16-mixed where the device is fast at
    it (CUDA, CPUs with AMX or AVX512-BF16) and 32-true elsewhere; `strategy` fsdp is FSDP2;
    `recompute` is activation checkpointing, and `average_on_cpu` keeps the EMA weights there, both
    to save the device's memory; `ema_snapshots` keeps averages of two widths so many times a phase,
    for `scm_core.reweigh`; `checkpoint_every`, `preview_every` and `log_every` count steps."""

    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    precision: str = "auto"
    accumulate: int = 1
    gradient_clip: float | None = None
    compile: bool = False
    recompute: bool = False
    average_on_cpu: bool = False
    ema_snapshots: int = 0
    checkpoint_every: int = 500
    preview_every: int = 1000
    log_every: int = 50


@dataclass
class Config:
    """The keys every modality shares; a run lives in the folder `out`."""

    modality: str = MISSING
    preset: str | None = place()
    stage: str | None = None
    out: str | None = place()
    seed: int = 0
    max_steps: int | None = None
    max_time: str | None = None
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    limits: Limits = field(default_factory=Limits)
