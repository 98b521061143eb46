"""A plugin as an outsider writes it: `InMemory`, two channels of their own scale, a vector."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from scm_core.contract.config import Config
from scm_core.contract.fields import Vector
from scm_core.contract.spec import SIGMA_DATA, Codec, ModalitySpec
from scm_core.data import media
from scm_core.data.batches import InMemory, channelwise, per_channel
from scm_core.networks import backbones

HERE = Path(__file__).parent / "assets"
CALLS = []  # the splits that were read, in order
STATISTICS = []  # what backbones were built with


@dataclass
class PairsConfig(Config):
    backbone: backbones.BackboneConfig = field(
        default_factory=lambda: backbones.BackboneConfig(options={"width": 32, "depth": 1})
    )


def read(split, scale=10):
    """Media, float32 (N, 2, 16), and where on a circle each of them starts."""
    CALLS.append(split)
    phase = 6.283 * torch.rand(84, 1, generator=torch.Generator().manual_seed(0))
    angle = phase + 6.283 * torch.arange(16) / 16
    pairs = torch.stack([angle.sin(), 100 + scale * angle.cos()], 1)
    place = torch.cat([phase.cos(), phase.sin()], 1)
    part = slice(0, 64) if split == "train" else slice(64, None)
    return pairs[part], {"place": place[part]}


class PairsCodec(Codec):
    def __init__(self, statistics):
        self.mean, std = channelwise(statistics, grid=1)
        self.scale = std / SIGMA_DATA

    def encode(self, pairs):
        return (pairs - self.mean) / self.scale

    def decode(self, x):
        return x * self.scale + self.mean

    def save(self, pair, path):
        return media.write_png(self.preview(pair[None]), f"{path}.png")

    def preview(self, pairs):
        return media.image_grid(media.curve_images(pairs[:, 0]))


def backbone(config, shape, schema, statistics):
    STATISTICS.append(statistics)
    return backbones.build(config.backbone, shape, schema)


SPEC = ModalitySpec(
    name="pairs",
    config=PairsConfig,
    config_file=HERE / "toy.yaml",
    presets=HERE / "toy",
    build_data=lambda config: InMemory(read, {"place": Vector(2)}, PairsCodec, 8, per_channel),
    build_backbone=backbone,
    build_codec=lambda config, statistics: PairsCodec(statistics),
    build_features=lambda config: lambda pairs: pairs.flatten(1),
)
