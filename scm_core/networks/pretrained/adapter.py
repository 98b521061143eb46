"""An unmodified network of diffusers as a backbone: F(x_t / sigma_data, t, condition)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from scm_core.networks.pretrained import schedule
from scm_core.networks.pretrained.families import Family, Given


class Adapter(nn.Module):
    """A network of diffusers, called in its own terms and heard in TrigFlow's.

    Its own samples have unit variance, as its autoencoder's config scales them; `path` is one of
    `method.conversions`, and `family` how its class is called. A text comes from the `prompt` among
    the condition's `fields`, which has `unpack(values) -> (tokens, mask, pooled)`, a class is the
    condition's `label`. `source` is a hash of what the network was read from: what a checkpoint
    lacks is taken from there.
    """

    def __init__(
        self,
        network: nn.Module,
        path: nn.Module,
        family: Family,
        fields: Mapping[str, Any],
        source: str | None = None,
        factor: int = 1,
        scheduler: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """`factor` is how many pixels a cell of a sample has a side, `scheduler` its config."""
        super().__init__()
        self.network, self.path, self.family = network, path, family
        self.source, self.prompt, self.label = source, fields.get("prompt"), fields.get("label")
        self.known = {"factor": factor, "scheduler": dict(scheduler)}

    @property
    def outside(self) -> list[nn.Module]:
        """What is sharded by itself, for it is called from outside of its block."""
        return [self.network.get_submodule(name) for name in self.family.outside]

    def train(self, mode: bool = True) -> Adapter:
        """The network stays as its pipeline has it: in training it drops labels at random."""
        super().train(mode)
        self.network.eval()
        return self

    def ends(self, last: float) -> tuple[float, float] | None:
        """The times of a student's first and last step, that one near `last`; None for any."""
        return schedule.ends(self.path, last)

    def forward(self, x: Tensor, t: Tensor, condition: Mapping[str, Tensor] | None) -> Tensor:
        """F (B, C, *grid) at x of that shape and t (B,)."""
        own, time = self.path.inputs(x, t)
        out = self.family(self.network, Given(own, time, **self._asked(x, condition or {})))
        channels = x.shape[1]
        if out.shape[1] == 2 * channels:  # the second half is a variance that it has learnt
            out = out[:, :channels]
        return self.path.velocity(x, t, out)

    def clock(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network is told of each of the times t (N,), at samples like x (B, C, *grid)."""
        time = self.path.inputs(x.flatten()[:1].expand(len(t), 1), t)[1]
        return self.family.clock(self.network, Given(x, time, **self.known))

    def _asked(self, x: Tensor, condition: Mapping[str, Tensor]) -> dict[str, Any]:
        if self.family.label:
            if classes(self.network) is None:
                return {"label": None, **self.known}
            label = condition["label"]
            none = label == self.label.classes  # in the data's numbers, not in the network's
            return {"label": label.masked_fill(none, no_class(self.network)), **self.known}
        tokens, mask, pooled = self.prompt.unpack(condition["prompt"])
        tokens, pooled = tokens.to(x.dtype), pooled.to(x.dtype)
        return {"tokens": tokens, "mask": mask, "pooled": pooled, **self.known}


def classes(network: nn.Module) -> int | None:
    """How many classes a network embeds, None where it knows of none."""
    config = network.config
    return config.get("num_class_embeds") or config.get("num_embeds_ada_norm")


def no_class(network: nn.Module) -> int:
    """The number by which a network of classes is asked about none: its last."""
    config = network.config
    return (config.get("num_class_embeds") or config["num_embeds_ada_norm"] + 1) - 1
