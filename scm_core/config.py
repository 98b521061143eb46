"""Configuration: structured dataclasses, merged by OmegaConf in a fixed order.

Spec dataclass < the modality's config.yaml < preset YAML < command line. A plugin derives its own
dataclass from `Config` and adds the sections `data`, `backbone` and whatever else it needs.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from scm_core import modality as modalities
from scm_core.errors import UserError, first_line
from scm_core.limits import Limits
from scm_core.words import Words, marked, parse, place, typed, word
from scm_core.words import section as section  # for commands, beside the others

LOOKED_UP = re.compile(r"\$\{(?!\.*\w[\w.]*\})")  # ${...} of more than another key's name


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
class MidtrainingConfig:
    """The student's first `steps`, which regress the ends of the teacher's trajectories, from
    `points` of each, with a learning rate of their own. They are drawn by `solver` (`dpm` or
    `ddim`) in `solver_steps` steps."""

    steps: int = 0
    lr: float = 1e-3
    solver: str = "dpm"
    solver_steps: int = 12
    points: int = 4


@dataclass
class ScoreConfig:
    """The score regulariser, in the loss with `weight`. A third network, the fake score, follows
    with the learning rate `lr` what the student draws, learning from each sample at `draws` times.
    `rollouts` are the numbers of steps that samples are drawn in, one of them a training step;
    `P_mean` and `P_std` shape the proposal over t."""

    weight: float = 0.0
    lr: float = 4e-4
    draws: int = 2
    rollouts: list[int] = field(default_factory=lambda: [1, 2, 4])
    P_mean: float = -0.4
    P_std: float = 1.6


@dataclass
class StudentConfig:
    """The consistency student. `method` is `distill` (sCD, from the teacher) or `train` (sCT, from
    data alone, started from the teacher's weights). `guidance` is folded into the teacher's
    velocity; `consistency` is the weight of the consistency loss; `tangent` is how dF/dt is found,
    exactly (`dual`) or by a `difference`; `tangent_warmup` is H; `norm` and `c` normalise it."""

    method: str = "distill"
    max_steps: int = 100_000
    lr: float = 3e-4
    lr_warmup: int = 100
    ema: float = 0.05
    guidance: float = 1.0
    consistency: float = 1.0
    tangent: str = "dual"
    tangent_warmup: int = 10_000
    norm: str = "rms"
    c: float = 0.1
    P_mean: float = -1.0
    P_std: float = 1.4
    midtraining: MidtrainingConfig = field(default_factory=MidtrainingConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


@dataclass
class TrainerConfig:
    """What Lightning's Trainer is told. `precision` auto is bf16-mixed where the device is fast at
    it (CUDA, CPUs with AMX or AVX512-BF16) and 32-true elsewhere; `strategy` fsdp is FSDP2;
    `recompute` forgets activations and computes them again, and `average_on_cpu` keeps the averaged
    weights there, both to save the device's memory; `checkpoint_every`, `preview_every` and
    `log_every` count steps."""

    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    precision: str = "auto"
    accumulate: int = 1
    gradient_clip: float | None = None
    compile: bool = False
    recompute: bool = False
    average_on_cpu: bool = False
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


def merge(base: DictConfig, *layers: tuple[str, DictConfig | Words]) -> DictConfig:
    """`base` with named layers on top; UserError names the layer, the key and the nearest key."""
    for source, layer in layers:
        try:
            schema = OmegaConf.get_type(base)
            read = layer if isinstance(layer, DictConfig) else typed(layer, schema)
            base = OmegaConf.merge(base, read)
            OmegaConf.to_container(base, resolve=True)  # interpolations that lead nowhere
            for key in marked(schema, place=True):
                if str(value := OmegaConf.select(base, key)).startswith("~"):
                    OmegaConf.update(base, key, os.path.expanduser(value))
        except ConfigKeyError as error:
            key = error.full_key or str(error.key)
            raise UserError(f"{source}: no key {key}; {nearest(key, keys(base))}") from error
        except OmegaConfBaseException as error:
            key = error.full_key or "?"
            raise UserError(f"{source}: {key}: {first_line(error)}") from error
    return base


def load(arguments: list[str]) -> tuple[modalities.ModalitySpec, DictConfig]:
    """The modality named by `modality=` and its finished configuration."""
    command = parse(arguments)
    if not (name := word(command, "modality")):
        names = ", ".join(entry.name for entry in modalities.installed()) or "none is installed"
        raise UserError(f"which modality? give modality=NAME ({names})")
    spec = modalities.get(name)
    return spec, finish(spec, command)


def finish(spec: modalities.ModalitySpec, command: Words) -> DictConfig:
    """The configuration of a modality under the command line's words, preset and `out` named."""
    preset = word(command, "preset") or default_preset()
    config = merge(
        defaults(spec),
        (f"preset {preset}", read_yaml(_preset_file(spec, preset))),
        ("command line", command),
    )
    if missing := OmegaConf.missing_keys(config):
        raise UserError(f"{', '.join(sorted(missing))} has no value")
    config.preset = preset
    config.out = config.out or f"runs/{spec.name}-{Path(preset).stem}"
    return config


def defaults(spec: modalities.ModalitySpec) -> DictConfig:
    """The plugin's dataclass under its config.yaml."""
    base = OmegaConf.structured(spec.config)
    return merge(base, (spec.config_file.name, read_yaml(spec.config_file)))


def default_preset() -> str:
    """`gpu` where there is one, else `cpu`."""
    return "gpu" if torch.cuda.is_available() else "cpu"


def precision(name: str, accelerator: str = "auto") -> str:
    """Lightning's name for a precision; `auto` picks what the accelerator is fast at."""
    if name != "auto":
        return name
    cuda = torch.cuda.is_available() and accelerator in ("auto", "cuda", "gpu")
    if cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "32-true"
    cpu = accelerator in ("auto", "cpu")
    # A bf16 matrix product is ten times slower than float32 on a CPU that has to emulate it.
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if cpu and native else "32-true"


def keys(config: DictConfig, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration, sections included."""
    found = []
    for key in config:
        name = f"{prefix}{key}"
        found.append(name)
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            found += keys(config[key], f"{name}.")
    return found


def nearest(key: str, known: list[str]) -> str:
    """A hint: the known key closest to a misspelt one, or the choices at its level."""
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    for candidates in (known, list(by_leaf)):
        wanted = key if candidates is known else key.rsplit(".", 1)[-1]
        close = difflib.get_close_matches(wanted, candidates, n=1, cutoff=0.7)
        if close:
            return f"did you mean {by_leaf.get(close[0], close[0])}?"
    parent = key.rpartition(".")[0]
    level = [k for k in known if k.rpartition(".")[0] == parent]
    return f"known are: {', '.join(level or known)}"


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration in plain containers, which load without executing anything."""
    return OmegaConf.to_container(config, resolve=True)


def _preset_file(spec: modalities.ModalitySpec, preset: str) -> Path:
    if preset.endswith((".yaml", ".yml")):
        return Path(preset)
    names = sorted(path.stem for path in spec.presets.glob("*.yaml"))
    if preset not in names:
        raise UserError(
            f"modality {spec.name} has no preset {preset}; {nearest(preset, names)} "
            "(or give the path of a YAML file)"
        )
    return spec.presets / f"{preset}.yaml"


def read_yaml(path: Path) -> DictConfig:
    """A YAML file as a configuration; UserError where it is none.

    Aliases are refused: a few of them in each other make a file of billions of values. So is what
    would look up anything but another key, such as an environment variable: that the command line
    may do alone.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would keep its reader waiting
            raise ValueError("it is no file")
        text = path.read_text(encoding="utf-8")
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has aliases (*), which are not read")
            if isinstance(event, yaml.ScalarEvent) and LOOKED_UP.search(event.value):
                where = event.start_mark.line + 1
                raise ValueError(f"${{...}} in line {where} is not another key: write the value")
        if not isinstance(found := OmegaConf.create(text), DictConfig):
            raise ValueError("it is a list, not keys with values")
        return found
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except Exception as error:
        raise UserError(f"{path} is not a YAML configuration: {first_line(error)}") from error
