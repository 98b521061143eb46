"""The membrane potential of a firing neuron: a modality of one dimension."""

from dataclasses import dataclass, field
from pathlib import Path

from scm_core.contract.config import Config
from scm_core.contract.spec import ModalitySpec
from scm_core.networks import backbones

from neuron import data
from neuron.data import DataConfig
from neuron.codec import Spikes, Subsampled, WindowCodec

HERE = Path(__file__).parent


@dataclass
class NeuronConfig(Config):
    data: DataConfig = field(default_factory=DataConfig)
    backbone: backbones.BackboneConfig = field(default_factory=backbones.BackboneConfig)


SPEC = ModalitySpec(
    name="neuron",
    config=NeuronConfig,
    config_file=HERE / "config.yaml",
    presets=HERE / "presets",
    build_data=lambda config: data.build(config.data),
    build_backbone=lambda config, shape, schema, statistics: backbones.build(
        config.backbone, shape, schema
    ),
    build_codec=lambda config, statistics: WindowCodec(statistics),
    build_features=lambda config: Subsampled(),
    build_scorer=lambda config, data: Spikes(),
)
