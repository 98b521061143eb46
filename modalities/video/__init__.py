"""Videos: short clips, drawn as latents of an autoencoder that is trained here."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from modalities.common import pretrained
from modalities.common.captions import encoder_of
from modalities.common.fashion_mnist import find_fashion_mnist
from modalities.common.prompt import Prompt
from modalities.video import autoencoder
from modalities.video.autoencoder import DecoderConfig
from modalities.video.codec import ClipCodec
from modalities.video.data import VideoData, VideoDataModule
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
class VideoConfig(Config):
    """The video modality's configuration. ``pretrained`` is a pipeline of diffusers, its folder or
    OWNER/NAME of the hub: its network is the teacher and the student's start."""

    data: VideoData = field(default_factory=VideoData)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    backbone: backbones.BackboneConfig = field(default_factory=backbones.BackboneConfig)
    pretrained: str | None = place()


def _autoencoder(config: VideoConfig, shape: Shape, statistics: Statistics) -> Autoencoder | None:
    if config.pretrained:
        return pretrained.of_pipeline(config.pretrained, shape, statistics)
    if config.decoder.pretrained:
        return pretrained.load(config.decoder.pretrained, shape, statistics)
    return autoencoder.build(config.decoder, shape)


def _backbone(
    config: VideoConfig, shape: Shape, schema: Schema, statistics: Statistics
) -> nn.Module:
    if config.pretrained:
        return pretrained.backbone(config.pretrained, schema, config.student.guidance)
    return backbones.build(config.backbone, shape, schema)


def _features(config: VideoConfig) -> tuple[Features, ...]:
    from modalities.video.features import FramesAndMotion, PixelsMotionEdges

    return FramesAndMotion(), PixelsMotionEdges()


def _scorer(config: VideoConfig, data: DataModule) -> Scorer:
    if "prompt" in data.condition:
        return Scorer()
    from modalities.video.scorer import ClipScorer

    return ClipScorer(data)


SPEC = ModalitySpec(
    name="video",
    config=VideoConfig,
    config_file=HERE / "config.yaml",
    presets=HERE / "presets",
    find_data=lambda config: find_fashion_mnist(config.data.root),
    checkpoints=HERE / "checkpoints",
    build_data=lambda config: VideoDataModule(
        config.data, config.limits, encoder=encoder_of(config)
    ),
    fields=(Prompt,),
    build_autoencoder=_autoencoder,
    build_backbone=_backbone,
    build_codec=lambda config, statistics: ClipCodec(statistics, config.decoder.lossless),
    build_features=_features,
    build_scorer=_scorer,
    evaluation_samples={"cpu": 1_000},
    targets={
        "reference_time_over_two_step_time": 50,
        "two_step_distance_over_best_teacher": 1.00,
        "reported_two_step_distance_over_best_teacher": 1.10,
        "two_step_distance_over_one_step": 1,
        "four_step_distance_over_two_step": 1,
        "two_step_recall_minus_best_teacher": -0.03,
        "two_step_class_accuracy_over_real": 0.90,
        "two_step_direction_accuracy_over_real": 0.90,
    },
)
