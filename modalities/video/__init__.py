"""Videos: short clips, drawn as latents of an autoencoder that is trained here."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from modalities import pretrained
from modalities.image.sets import find_fashion_mnist
from modalities.video import autoencoder
from modalities.video.autoencoder import DecoderConfig
from modalities.video.data import VideoData, VideoDataModule
from modalities.video.decoder import ClipDecoder
from scm_core.contract.config import Config
from scm_core.contract.spec import ModalitySpec
from scm_core.networks import backbones

ROOT = Path(__file__).parents[2]


@dataclass
class VideoConfig(Config):
    """The video modality's configuration."""

    data: VideoData = field(default_factory=VideoData)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    backbone: backbones.BackboneConfig = field(default_factory=backbones.BackboneConfig)


def _autoencoder(config, shape, statistics):
    if config.decoder.pretrained:
        return pretrained.load(config.decoder.pretrained, shape, statistics)
    return autoencoder.build(config.decoder, shape)


def _features(config):
    from modalities.video.features import FramesAndMotion

    return FramesAndMotion()


def _judge(config, data):
    from modalities.video.judge import ClipJudge

    return ClipJudge(data)


SPEC = ModalitySpec(
    name="video",
    config=VideoConfig,
    config_file=Path(__file__).with_name("config.yaml"),
    presets=ROOT / "configs" / "video",
    find_data=lambda config: find_fashion_mnist(config.data.root),
    checkpoints=ROOT / "checkpoints" / "video",
    build_data=lambda config: VideoDataModule(config.data, OmegaConf.to_object(config.limits)),
    build_autoencoder=_autoencoder,
    build_backbone=lambda config, shape, schema: backbones.build(config.backbone, shape, schema),
    build_decoder=lambda config, statistics: ClipDecoder(statistics, config.decoder.lossless),
    build_features=_features,
    build_judge=_judge,
    evaluation_samples={"cpu": 1_000},
    bars={
        "reference_time_over_two_step_time": 50,
        "two_step_distance_over_best_teacher": 1.10,
        "two_step_class_accuracy_over_real": 0.90,
        "two_step_direction_accuracy_over_real": 0.90,
    },
)
