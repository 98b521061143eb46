"""Sounds: notes of a soundfont or any folder of recordings, as mel spectrograms."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from modalities.audio import backbone, vocoder
from modalities.audio.data import AudioData, AudioDataModule
from modalities.audio.decoder import AudioDecoder
from modalities.audio.mel import MelSettings
from modalities.audio.notes import find_font
from modalities.audio.vocoder import DecoderConfig
from scm_core.contract.config import Config
from scm_core.contract.spec import ModalitySpec
from scm_core.networks import backbones

ROOT = Path(__file__).parents[2]


@dataclass
class AudioConfig(Config):
    """The audio modality's configuration."""

    mel: MelSettings = field(default_factory=MelSettings)
    data: AudioData = field(default_factory=AudioData)
    backbone: backbones.BackboneConfig = field(default_factory=backbones.BackboneConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


def _features(config):
    from modalities.audio.features import SpeechEmbedding

    return SpeechEmbedding(config.mel.sample_rate)


def _judge(config, data):
    from modalities.audio.judge import NoteJudge

    return NoteJudge(data)


def _mel(config) -> MelSettings:
    return OmegaConf.to_object(config.mel)


def _data(config):
    vocoder.build(config.decoder, _mel(config))  # what does not fit is said before sounds are read
    limits = OmegaConf.to_object(config.limits)
    return AudioDataModule(config.data, _mel(config), limits=limits)


SPEC = ModalitySpec(
    name="audio",
    config=AudioConfig,
    config_file=Path(__file__).with_name("config.yaml"),
    presets=ROOT / "configs" / "audio",
    find_data=lambda config: find_font(config.data.font),
    checkpoints=ROOT / "checkpoints" / "audio",
    build_data=_data,
    build_backbone=lambda config, shape, schema: backbone.build(
        config.backbone, _mel(config), shape, schema
    ),
    build_decoder=lambda config, statistics: AudioDecoder(config.decoder, _mel(config), statistics),
    build_features=_features,
    build_judge=_judge,
    evaluation_samples={"cpu": 1_000},
    bars={
        "reference_sampling_over_two_step_sampling": 50,
        "two_step_distance_over_best_teacher": 1.10,
        "two_step_pitch_accuracy_over_real": 0.90,
        "two_step_family_accuracy_over_real": 0.85,
    },
)
