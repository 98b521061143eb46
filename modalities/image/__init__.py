"""Images: Fashion-MNIST, CIFAR-10 or any folder of pictures."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from modalities import pretrained
from modalities.image.data import ImageData, ImageDataModule
from modalities.image.decoder import ImageDecoder
from modalities.image.sets import find_fashion_mnist
from modalities.pretrained import PretrainedConfig
from scm_core.contract.config import Config
from scm_core.contract.spec import ModalitySpec
from scm_core.networks import backbones

ROOT = Path(__file__).parents[2]


@dataclass
class ImageConfig(Config):
    """The image modality's configuration."""

    data: ImageData = field(default_factory=ImageData)
    decoder: PretrainedConfig = field(default_factory=PretrainedConfig)
    backbone: backbones.BackboneConfig = field(default_factory=backbones.BackboneConfig)


def _autoencoder(config, shape, statistics):
    name = config.decoder.pretrained
    return pretrained.load(name, shape, statistics) if name else None


def _features(config):
    from modalities.image.features import EfficientNetLite0

    return EfficientNetLite0()


def _judge(config, data):
    from modalities.image.judge import ClassJudge

    return ClassJudge(data)


SPEC = ModalitySpec(
    name="image",
    config=ImageConfig,
    config_file=Path(__file__).with_name("config.yaml"),
    presets=ROOT / "configs" / "image",
    find_data=lambda config: find_fashion_mnist(config.data.root),
    checkpoints=ROOT / "checkpoints" / "image",
    build_data=lambda config: ImageDataModule(config.data, OmegaConf.to_object(config.limits)),
    build_autoencoder=_autoencoder,
    build_backbone=lambda config, shape, schema: backbones.build(config.backbone, shape, schema),
    build_decoder=lambda config, statistics: ImageDecoder(statistics),
    build_features=_features,
    build_judge=_judge,
    bars={
        "reference_time_over_two_step_time": 50,
        "two_step_distance_over_best_teacher": 1.10,
    },
)
