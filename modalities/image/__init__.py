"""Images: Fashion-MNIST, CIFAR-10 or any folder of pictures."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from modalities.common import pretrained
from modalities.common.captions import encoder_of
from modalities.common.fashion_mnist import find_fashion_mnist
from modalities.common.pretrained import PretrainedConfig
from modalities.common.prompt import Prompt
from modalities.image.codec import ImageCodec
from modalities.image.data import ImageData, ImageDataModule
from scm_core.base.arguments import place
from scm_core.contract.config import Config
from scm_core.contract.fields import Schema
from scm_core.contract.spec import (
    Autoencoder,
    DataModule,
    Features,
    ModalitySpec,
    Scorer,
    Shape,
    Statistics,
)
from scm_core.networks import backbones

HERE = Path(__file__).parent


@dataclass
class ImageConfig(Config):
    """The image modality's configuration. ``pretrained`` is a pipeline of diffusers, its folder or
    OWNER/NAME of the hub: its network is the teacher and the student's start."""

    data: ImageData = field(default_factory=ImageData)
    decoder: PretrainedConfig = field(default_factory=PretrainedConfig)
    backbone: backbones.BackboneConfig = field(default_factory=backbones.BackboneConfig)
    pretrained: str | None = place()


def _autoencoder(config: ImageConfig, shape: Shape, statistics: Statistics) -> Autoencoder | None:
    if config.pretrained:
        return pretrained.of_pipeline(config.pretrained, shape, statistics)
    name = config.decoder.pretrained
    return pretrained.load(name, shape, statistics) if name else None


def _backbone(
    config: ImageConfig, shape: Shape, schema: Schema, statistics: Statistics
) -> nn.Module:
    if config.pretrained:
        return pretrained.backbone(config.pretrained, schema, config.student.guidance)
    return backbones.build(config.backbone, shape, schema)


def _features(config: ImageConfig) -> tuple[Features, ...]:
    from modalities.common.efficientnet import EfficientNetLite0
    from modalities.image.features import PatchProjections

    return EfficientNetLite0(), PatchProjections()


def _scorer(config: ImageConfig, data: DataModule) -> Scorer:
    if "prompt" in data.condition:
        from modalities.image.clip import ClipScore

        return ClipScore(data, config.data.clip) if config.data.clip else Scorer()
    from modalities.image.scorer import ClassScorer

    return ClassScorer(data)


SPEC = ModalitySpec(
    name="image",
    config=ImageConfig,
    config_file=HERE / "config.yaml",
    presets=HERE / "presets",
    find_data=lambda config: find_fashion_mnist(config.data.root),
    checkpoints=HERE / "checkpoints",
    build_data=lambda config: ImageDataModule(
        config.data, config.limits, encoder_of(config), plain=config.pretrained is not None
    ),
    fields=(Prompt,),
    build_autoencoder=_autoencoder,
    build_backbone=_backbone,
    build_codec=lambda config, statistics: ImageCodec(statistics),
    build_features=_features,
    build_scorer=_scorer,
    targets={
        "reference_time_over_two_step_time": 50,
        "two_step_distance_over_best_teacher": 1.00,
        "reported_two_step_distance_over_best_teacher": 1.10,
        "two_step_distance_over_one_step": 1,
        "four_step_distance_over_two_step": 1,
        "two_step_recall_minus_best_teacher": -0.03,
    },
)
