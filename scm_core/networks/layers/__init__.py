"""Building blocks of backbones, each safe under Dual, bf16 autocast and torch.compile."""

from scm_core.networks.layers.attention import Attention, CrossAttention
from scm_core.networks.layers.condition import ConditionEmbedding, ConditionTokens
from scm_core.networks.layers.norm import AdaptiveNorm, RMSNorm, pixel_norm
from scm_core.networks.layers.patch import PatchHead, PatchStem, convolution, grid_positions
from scm_core.networks.layers.time import TimeEmbedding, positional_embedding

__all__ = [
    "AdaptiveNorm",
    "Attention",
    "ConditionEmbedding",
    "ConditionTokens",
    "CrossAttention",
    "PatchHead",
    "PatchStem",
    "RMSNorm",
    "TimeEmbedding",
    "convolution",
    "grid_positions",
    "pixel_norm",
    "positional_embedding",
]
