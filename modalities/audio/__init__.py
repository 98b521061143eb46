"""Sounds: notes of a soundfont or any folder of recordings, as mel spectrograms."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from modalities.audio import backbone, vocoder
from modalities.audio.codec import AudioCodec
from modalities.audio.data import AudioData, AudioDataModule
from modalities.audio.mel import MelSettings
from modalities.audio.notes import find_font
from modalities.audio.vocoder import DecoderConfig
from modalities.common.captions import encoder_of
from modalities.common.prompt import Prompt
from scm_core.contract.config import Config
from scm_core.contract.fields import Schema
from scm_core.contract.spec import (
    Codec,
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
class AudioConfig(Config):
    """The audio modality's configuration."""

    mel: MelSettings = field(default_factory=MelSettings)
    data: AudioData = field(default_factory=AudioData)
    backbone: backbones.BackboneConfig = field(default_factory=backbones.BackboneConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


def _features(config: AudioConfig) -> tuple[Features, ...]:
    from modalities.audio.features import LogMelStatistics, SpeechEmbedding

    return SpeechEmbedding(config.mel.sample_rate), LogMelStatistics(config.mel)


def _scorer(config: AudioConfig, data: DataModule) -> Scorer:
    if "prompt" in data.condition:
        return Scorer()
    from modalities.audio.scorer import NoteScorer

    return NoteScorer(data)


def _data(config: AudioConfig) -> DataModule:
    vocoder.build(config.decoder, config.mel)  # what does not fit is said before sounds are read
    encoder = encoder_of(config)
    return AudioDataModule(config.data, config.mel, limits=config.limits, encoder=encoder)


def _backbone(
    config: AudioConfig, shape: Shape, schema: Schema, statistics: Statistics
) -> nn.Module:
    return backbone.build(config.backbone, config.mel, shape, schema)


def _codec(config: AudioConfig, statistics: Statistics) -> Codec:
    return AudioCodec(config.decoder, config.mel, statistics)


SPEC = ModalitySpec(
    name="audio",
    config=AudioConfig,
    config_file=HERE / "config.yaml",
    presets=HERE / "presets",
    find_data=lambda config: find_font(config.data.font),
    checkpoints=HERE / "checkpoints",
    build_data=_data,
    fields=(Prompt,),
    build_backbone=_backbone,
    build_codec=_codec,
    build_features=_features,
    build_scorer=_scorer,
    evaluation_samples={"cpu": 1_000},
    targets={
        "reference_sampling_over_two_step_sampling": 50,
        "two_step_distance_over_best_teacher": 1.00,
        "reported_two_step_distance_over_best_teacher": 1.10,
        "two_step_distance_over_one_step": 1,
        "four_step_distance_over_two_step": 1,
        "two_step_recall_minus_best_teacher": -0.03,
        "two_step_pitch_accuracy_over_real": 0.90,
        "two_step_family_accuracy_over_real": 0.85,
    },
)
