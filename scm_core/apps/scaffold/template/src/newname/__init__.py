"""The modality newname."""

from dataclasses import dataclass, field
from pathlib import Path

from scm_core.contract.config import Config
from scm_core.contract.spec import Features, ModalitySpec
from scm_core.networks.backbones import BackboneConfig

from newname import backbone, codec, data
from newname.data import DataConfig

HERE = Path(__file__).parent


@dataclass
class ModalityConfig(Config):
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)


class Media(Features):
    """What distances are measured in, (N, D): the media themselves, for want of better."""

    name = "newname"

    def __call__(self, media):
        return media.float().flatten(1)


SPEC = ModalitySpec(
    name="newname",
    config=ModalityConfig,
    config_file=HERE / "config.yaml",
    presets=HERE / "presets",
    build_data=lambda config: data.build(config.data),
    build_backbone=lambda config, *about: backbone.build(config.backbone, *about),
    build_codec=lambda config, statistics: codec.Codec(statistics),
    build_features=lambda config: Media(),
)
