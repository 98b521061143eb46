"""A pretrained network's embedding of time made slow enough for a consistency model.

A network of diffusers embeds 1000 t by frequencies up to 1, so that F follows t at frequencies of
up to 1000 and dF/dt is what these make of it. SANA-Sprint (arXiv 2503.09641, section 3.2) embeds t
itself instead and trains the network until it is the teacher again. Here the network keeps its
class: the fast ones of its sinusoids are left out, and the MLP behind them is fitted to what it
made of all of them. That is a regression on curves over t in closed form, which needs neither data
nor the rest of the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.networks.pretrained.adapter import Adapter

# Root mean square slope over t of a sinusoid that stays. With 20 what is fitted is as slow, but
# training finds its way back to a fast F: dF/dt three times the teacher's after 1,000 steps, and
# the consistency loss falls apart (docs/emoji.md).
FASTEST = 2.0
LAST = math.atan(160.0)  # the last time that a sampler asks for
GRID, STRIDE = 20_001, 5  # times at which slopes are measured, and each how many-th is fitted
RIDGE = 1e-6  # of the mean eigenvalue


@dataclass(frozen=True)
class Slowed:
    """How many of the sinusoids were left out, and the error of what is made of the others."""

    left_out: int
    sinusoids: int
    error: float

    def __str__(self) -> str:
        return (
            f"time embedding: {self.left_out} of {self.sinusoids} sinusoids are too fast and left "
            f"out; what the others make of t differs by {self.error:.1%}"
        )


class Slow:
    """A forward hook that leaves out some of a `Timesteps` module's sinusoids."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def __call__(self, module: nn.Module, given: Any, sinusoids: Any) -> Any:
        self.kept = self.kept.to(sinusoids.device)
        return sinusoids * self.kept.to(sinusoids.dtype)


@torch.no_grad()
def slow(adapter: Adapter, x: Tensor, condition: dict[str, Tensor], *, fit: bool) -> list[Slowed]:
    """Leave the fast sinusoids of each of the network's embeddings of time out, for good.

    `x` (B, C, *grid) and `condition` are any that it takes. With `fit` the MLPs behind them are
    fitted; a network that goes on training has been. Empty where all sinusoids are slow, or the
    network embeds time in a way of its own.
    """
    found = []
    for sinusoids, mlp, scale in list(_embeddings(adapter, x, condition)):
        t = torch.linspace(0, LAST, GRID, dtype=torch.float64, device=x.device)
        time = adapter.path.inputs(x.flatten()[:1].expand(GRID, 1), t)[1] * scale
        curve = sinusoids(time.float())
        slope = curve.diff(dim=0) * ((GRID - 1) / LAST)
        steady = slope.square().mean(0).sqrt() <= FASTEST
        if not steady.all():
            sinusoids.register_forward_hook(Slow(steady.float()))
            error = _fit(mlp, curve[::STRIDE].to(mlp.linear_1.weight), steady) if fit else math.nan
            found.append(Slowed(int((~steady).sum()), len(steady), error))
    return found


def _embeddings(
    adapter: Adapter, x: Tensor, condition: dict[str, Tensor]
) -> Iterator[tuple[nn.Module, nn.Module, float]]:
    """Modules of sinusoids, the MLPs behind them, and what the first get for a time of 1."""
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    pairs, got = [], {}
    for parent in adapter.network.modules():
        children = dict(parent.named_children())
        sinusoids = [one for one in children.values() if isinstance(one, Timesteps)]
        mlps = [key for key in children if isinstance(children[key], TimestepEmbedding)]
        mlps = [key for key in mlps if "time" in key]
        if sinusoids and mlps:
            pairs.append((sinusoids[0], children[mlps[0]]))

    def note(module: nn.Module, given: Any) -> None:
        got.setdefault(id(module), given[0])  # what asks for a guidance comes later

    hooks = [sinusoids.register_forward_pre_hook(note) for sinusoids, _ in pairs]
    t = torch.full((len(x),), 0.5, device=x.device)
    adapter(x, t, condition)
    for hook in hooks:
        hook.remove()
    time = adapter.path.inputs(x, t)[1]
    for sinusoids, mlp in pairs:
        if id(sinusoids) in got:
            yield sinusoids, mlp, float(got[id(sinusoids)].flatten()[0] / time[0])


def _fit(mlp: nn.Module, curve: Tensor, steady: Tensor) -> float:
    """Fit an MLP to what it makes of all sinusoids (N, width), by those that are steady alone.

    Its second layer is the ridge regression on what its first makes of them. Returns the root mean
    square error over the spread of what is to be made.
    """
    first, second = mlp.linear_1, mlp.linear_2
    wanted = second(mlp.act(first(curve)))
    first.bias += first.weight @ (curve.mean(0) * ~steady)  # what the fast ones are on average
    first.weight *= steady
    hidden = mlp.act(first(curve))
    left, h = (wanted - second(hidden)).double(), hidden.double()
    h, mean = h - h.mean(0), h.mean(0)
    gram = h.T @ h
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, h.T @ (left - left.mean(0)))
    second.weight += weight.T.to(second.weight)
    second.bias += (left.mean(0) - mean @ weight).to(second.bias)
    error = (second(hidden) - wanted).square().mean()
    return float((error / (wanted - wanted.mean(0)).square().mean()).sqrt())
