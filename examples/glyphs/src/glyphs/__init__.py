"""Letters as clouds of points: a modality whose grid is no image, but a set without an order."""

from dataclasses import dataclass, field
from pathlib import Path

from scm_core.contract.config import Config
from scm_core.contract.spec import ModalitySpec

from glyphs import data
from glyphs.backbone import CloudConfig, CloudTransformer
from glyphs.data import DataConfig
from glyphs.codec import CloudCodec, NearestLetter, Occupancy

HERE = Path(__file__).parent


@dataclass
class GlyphsConfig(Config):
    data: DataConfig = field(default_factory=DataConfig)
    backbone: CloudConfig = field(default_factory=CloudConfig)


SPEC = ModalitySpec(
    name="glyphs",
    config=GlyphsConfig,
    config_file=HERE / "config.yaml",
    presets=HERE / "presets",
    build_data=lambda config: data.build(config.data),
    build_backbone=lambda config, shape, schema, statistics: CloudTransformer(
        config.backbone, shape, schema
    ),
    build_codec=lambda config, statistics: CloudCodec(statistics),
    build_features=lambda config: Occupancy(),
    build_scorer=lambda config, data: NearestLetter(data),
)
