"""A small plugin that keeps to the contract, for tests that break it in one place."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from scm_core.base.arguments import parse
from scm_core.contract.config import Config
from scm_core.contract.fields import Label
from scm_core.contract.spec import SIGMA_DATA, Batch, Codec, DataModule, Features, ModalitySpec
from scm_core.data import media
from scm_core.data.batches import loader
from scm_core.engine import config, storage
from scm_core.networks import backbones

HERE = Path(__file__).parent / "assets"


@dataclass
class ToyConfig(Config):
    backbone: backbones.BackboneConfig = field(
        default_factory=lambda: backbones.BackboneConfig(options={"width": 32, "depth": 1})
    )


class ToySet(torch.utils.data.Dataset):
    """Sine waves of two pitches, float32 (N, 1, 16)."""

    def __init__(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        self.pitch = torch.arange(n) % 2
        phase = 6.283 * torch.rand(n, 1, generator=generator)
        time = 6.283 * torch.arange(16) / 16
        self.waves = torch.sin((self.pitch[:, None] + 1) * time + phase)[:, None]

    def __len__(self):
        return len(self.pitch)

    def __getitems__(self, indices):
        return Batch(self.waves[indices] * 2**0.5 * SIGMA_DATA, {"pitch": self.pitch[indices]})


class ToyData(DataModule):
    shape = (1, 16)
    condition = {"pitch": Label(2)}
    statistics = {"std": 2**-0.5}
    dataset = ToySet

    def setup(self, stage=None):
        self.train_set, self.test_set = self.dataset(256, seed=0), self.dataset(32, seed=1)

    def train_dataloader(self):
        return loader(self.train_set, 16, 0, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return loader(self.test_set, 16, 0)

    def real(self, split):
        part = self.train_set if split == "train" else self.test_set
        for i in range(0, len(part), 16):
            yield part.waves[i : i + 16], {"pitch": part.pitch[i : i + 16]}


class ToyCodec(Codec):
    def encode(self, waves):
        return waves * 2**0.5 * SIGMA_DATA

    def decode(self, x):
        return x / SIGMA_DATA / 2**0.5

    def save(self, wave, path):
        return media.write_png(self.preview(wave[None]), f"{path}.png")

    def preview(self, waves):
        strips = ((waves.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)
        return media.image_grid(strips[:, :, None].expand(-1, -1, 8, -1))


class ToyFeatures(Features):
    name = "waves"

    def __call__(self, waves):
        return waves.flatten(1)


SPEC = ModalitySpec(
    name="toy",
    config=ToyConfig,
    config_file=HERE / "toy.yaml",
    presets=HERE / "toy",
    build_data=lambda config: ToyData(),
    build_backbone=lambda config, shape, schema, _: backbones.build(config.backbone, shape, schema),
    build_codec=lambda config, statistics: ToyCodec(),
    build_features=lambda config: ToyFeatures(),
)


def write_student(path, name="toy_plugin:SPEC"):
    """An untrained student, as a checkpoint that calls the plugin so: by default, by its place."""
    settings = config.finish(SPEC, parse([f"modality={name}"]))
    network = backbones.build(settings.backbone, ToyData.shape, ToyData.condition)
    storage.export(
        path,
        network.state_dict(),
        stage="student",
        step=0,
        config=settings,
        shape=ToyData.shape,
        condition=ToyData.condition,
        statistics=ToyData.statistics,
    )
