"""Configurations, merged by OmegaConf in a fixed order.

Spec dataclass < the modality's config.yaml < preset YAML < command line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from scm_core.base import merging
from scm_core.base.arguments import Overrides, nearest, parse, word
from scm_core.base.errors import UserError, first_line
from scm_core.contract import spec as modalities
from scm_core.engine import legacy

LATEST = 1.5  # of a sampler's last time
LOOKED_UP = re.compile(r"\$\{(?!\.*\w[\w.]*\})")  # ${...} of more than another key's name


def merge(base: DictConfig, *layers: tuple[str, DictConfig | Overrides]) -> DictConfig:
    """As `base.merging.merge`, where keys of before are read as today's."""
    read = (
        (source, (legacy.translated if isinstance(layer, DictConfig) else legacy.renamed)(layer))
        for source, layer in layers
    )
    return merging.merge(base, *read)


def load(arguments: list[str]) -> tuple[modalities.ModalitySpec, DictConfig]:
    """The modality named by `modality=` and its finished configuration."""
    command = parse(arguments)
    if command.get("teacher", "{").strip()[:1] != "{":  # no section: the name of a pretrained one
        if "pretrained" in command:
            raise UserError("teacher=NAME and pretrained=NAME mean the same: give one of them")
        command["pretrained"] = command.pop("teacher")
    if not (name := word(command, "modality")):
        names = ", ".join(entry.name for entry in modalities.installed()) or "none is installed"
        raise UserError(f"which modality? give modality=NAME ({names})")
    spec = modalities.get(name)
    return spec, finish(spec, command)


def finish(spec: modalities.ModalitySpec, command: Overrides) -> DictConfig:
    """A modality's configuration under the command line's overrides, preset and `out` named."""
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


def check_last_time(student: DictConfig) -> None:
    """UserError where a student's sampler cannot look last: at data, or at what is noise alone."""
    if not 0 < student.last_time <= LATEST:
        raise UserError(
            f"student.last_time={student.last_time:g} must be above 0 and at most {LATEST} (data "
            "are at 0, noise at 1.57)"
        )


def default_preset() -> str:
    """`gpu` where there is one, else `cpu`."""
    return "gpu" if torch.cuda.is_available() else "cpu"


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
