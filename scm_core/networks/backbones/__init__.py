"""Networks for reuse by any plugin: a transformer and a U-Net over grids of 1 to 3 dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from scm_core.base.errors import UserError, first_line
from scm_core.networks.backbones.transformer import Transformer
from scm_core.networks.backbones.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"transformer": Transformer, "unet": UNet}

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "transformer": {
        "tiny": {"width": 128, "depth": 4, "heads": 4},
        "small": {"width": 384, "depth": 12, "heads": 6},
        "base": {"width": 768, "depth": 12, "heads": 12},
        "large": {"width": 1024, "depth": 24, "heads": 16},
        "xl": {"width": 1152, "depth": 28, "heads": 16},
        "xxl": {"width": 1792, "depth": 29, "heads": 28},
    },
    "unet": {
        "tiny": {"channels": (32, 64), "blocks": 1, "embedding": 128},
        "small": {"channels": (64, 128), "blocks": 1, "embedding": 256},
        "base": {"channels": (128, 256, 256), "blocks": 2, "embedding": 512, "attention": 1},
        "large": {"channels": (192, 384, 576), "blocks": 3, "embedding": 768, "attention": 2},
        "xl": {"channels": (256, 512, 768), "blocks": 3, "embedding": 1024, "attention": 2},
        "xxl": {"channels": (576, 1152, 1728), "blocks": 4, "embedding": 2304, "attention": 2},
    },
}


@dataclass
class BackboneConfig:
    """Which network: its `name`, a `size` from tiny to xxl (1.5 billion parameters), the cells a
    side that one patch folds, and `options` that override the size's own (width, depth, ...); null
    takes one back."""

    name: str = "transformer"
    size: str = "tiny"
    patch: int = 2
    dropout: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


def check(config: BackboneConfig) -> None:
    """UserError for a network or size that does not exist, which needs no data to be known."""
    if config.name not in NETWORKS:
        raise UserError(f"backbone.name={config.name} is none of {', '.join(NETWORKS)}")
    if config.size not in SIZES[config.name]:
        raise UserError(f"backbone.size={config.size} is none of {', '.join(SIZES[config.name])}")
    if config.patch < 1:
        raise UserError(f"backbone.patch={config.patch} must be at least 1")
    for key, value in config.options.items():
        numbers = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        least = 0 if key == "attention" else 1  # a U-Net's levels that have it
        if not numbers or any(isinstance(one, int) and one < least for one in numbers):
            raise UserError(f"backbone.options.{key}={value} must be at least {least}")


def build(
    config: BackboneConfig, shape: tuple[int, ...], condition: Mapping[str, Any]
) -> nn.Module:
    """The network for samples of `shape` (C, *grid) under a schema's `condition` fields.

    UserError for what does not exist or fit.
    """
    check(config)
    given = {key: value for key, value in config.options.items() if value is not None}
    options = {**SIZES[config.name][config.size], **given}
    try:
        return NETWORKS[config.name](
            shape, condition, patch=config.patch, dropout=config.dropout, **options
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"backbone {config.name}: {first_line(error)}") from error
