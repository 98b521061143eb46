"""The modality newname."""

from dataclasses import dataclass, field
from pathlib import Path

from scm_core.contract.config import Config
from scm_core.contract.spec import ModalitySpec
from scm_core.networks.backbones import BackboneConfig

from newname import backbone, data, decoder
from newname.data import DataConfig

HERE = Path(__file__).parent


@dataclass
class ModalityConfig(Config):
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)


def features(media):
    """What distances are measured in, (N, D): the media themselves, for want of better."""
    return media


features.name = "newname"
SPEC = ModalitySpec(
    name="newname",
    config=ModalityConfig,
    config_file=HERE / "config.yaml",
    presets=HERE / "presets",
    build_data=lambda config: data.build(config.data),
    build_backbone=lambda config, shape, schema: backbone.build(config.backbone, shape, schema),
    build_decoder=lambda config, statistics: decoder.Decoder(statistics),
    build_features=lambda config: features,
    build_judge=lambda config, data: lambda media, condition: {},  # scores of samples, by name
)
