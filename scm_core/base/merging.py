"""Layers of settings on top of a dataclass, and what to say where a key is misspelt."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from scm_core.base.arguments import Overrides, marked, nearest, typed
from scm_core.base.errors import UserError, first_line


def merge(base: DictConfig, *layers: tuple[str, DictConfig | Overrides]) -> DictConfig:
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
        except TypeError as error:  # "Cannot merge incompatible container types"
            key = _clash(base, read) or "?"
            kind = "a list" if OmegaConf.is_list(OmegaConf.select(base, key)) else "a section"
            raise UserError(f"{source}: {key}: it must be {kind}") from error
        except OmegaConfBaseException as error:
            key = error.full_key or "?"
            raise UserError(f"{source}: {key}: {first_line(error)}") from error
    return base


def _clash(base: DictConfig, layer: DictConfig, prefix: str = "") -> str | None:
    """The first dotted key that is a list in one and a section in the other."""
    for key in layer:
        ours, theirs = (OmegaConf.select(each, str(key)) for each in (base, layer))
        if OmegaConf.is_dict(ours) and OmegaConf.is_dict(theirs):
            if found := _clash(ours, theirs, f"{prefix}{key}."):
                return found
        elif OmegaConf.is_config(ours) and OmegaConf.is_config(theirs):
            if OmegaConf.is_list(ours) != OmegaConf.is_list(theirs):
                return f"{prefix}{key}"
    return None


def keys(config: DictConfig, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration, sections included."""
    found = []
    for key in config:
        name = f"{prefix}{key}"
        found.append(name)
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            found += keys(config[key], f"{name}.")
    return found
