"""The network F(x, t, condition): one of the core's, or any nn.Module of yours."""

from scm_core.networks import backbones


def build(config, shape, schema, statistics):
    return backbones.build(config, shape, schema)
