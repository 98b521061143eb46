"""A transformer over points that does not know their order."""

from dataclasses import dataclass

from scm_core.networks.backbones.transformer import Block
from scm_core.networks.layers import AdaptiveNorm, ConditionEmbedding, TimeEmbedding
from torch import nn
from torch.nn import functional


@dataclass
class CloudConfig:
    """The network: channels of a point, blocks, and heads of attention in each."""

    width: int = 128
    depth: int = 4
    heads: int = 4


class CloudTransformer(nn.Module):
    """F(x, t, condition) for clouds x (B, 2, points); points moved about in x are so in F.

    The blocks are the core's. Its own transformer would add positions, and a set has none.
    """

    def __init__(self, config, shape, condition):
        super().__init__()
        channels, width = shape[0], config.width
        self.time = TimeEmbedding(width)
        self.condition = ConditionEmbedding(condition, width)
        self.stem = nn.Linear(channels, width)
        blocks = [Block(width, config.heads, dropout=0.0) for _ in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = AdaptiveNorm(width, width)
        self.head = nn.Linear(width, channels)
        nn.init.zeros_(self.head.weight)

    def forward(self, x, t, condition=None):
        embedding = functional.silu(self.time(t) + self.condition(condition, t))
        points = self.stem(x.transpose(1, 2))
        for block in self.blocks:
            points = block(points, embedding)
        return self.head(self.norm(points, embedding)).transpose(1, 2)
