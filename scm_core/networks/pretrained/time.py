"""A pretrained network's embedding of time made slow enough for a consistency model.

A network of diffusers embeds 1000 t by frequencies up to 1, so that F follows t at frequencies of
up to 1000 and dF/dt is what these make of it. SANA-Sprint (arXiv 2503.09641, section 3.2) embeds t
itself instead and trains the network until it is the teacher again. Here the network keeps its
class: the fast ones of its sinusoids are left out, and the MLP behind them is fitted to what it
made of all of them. That is a regression on curves over t in closed form, which needs neither data
nor the rest of the network.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.method.conversions import EDM
from scm_core.networks.pretrained.adapter import Adapter

# Root mean square slope over t of a sinusoid that stays. With 20 what is fitted is as slow, but
# training finds its way back to a fast F: dF/dt three times the teacher's after 1,000 steps, and
# the consistency loss falls apart (docs/emoji.md).
FASTEST = 2.0
LAST = math.atan(160.0)  # the last time that a sampler asks for
GRID, STRIDE = 20_001, 5  # times at which slopes are measured, and each how many-th is fitted
RIDGE = 1e-4  # of the mean eigenvalue; with less the weights grow beyond what bf16 can add up


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


@dataclass(frozen=True)
class Fast:
    """An embedding of time with fast sinusoids: which are `steady`, what they all are over t, and
    the MLP behind them, which the network knows by `name`."""

    name: str
    mlp: nn.Module
    steady: Tensor
    curve: Tensor

    def fitted(self, mlp: nn.Module) -> Slowed:
        """Fit an MLP to what it makes of all sinusoids, by the steady ones alone."""
        error = _fit(mlp, self.curve.to(mlp.linear_1.weight), self.steady)
        return Slowed(int((~self.steady).sum()), len(self.steady), error)


def slow(adapter: Adapter, x: Tensor, condition: dict[str, Tensor]) -> list[Slowed]:
    """Leave the fast sinusoids of each of the network's embeddings of time out.

    `x` (B, C, *grid) and `condition` are any that it takes. Empty where all sinusoids are slow, or
    the network embeds time in a way of its own.
    """
    return [fast.fitted(fast.mlp) for fast in _fast(adapter, x, condition)]


def hold(adapter: Adapter, x: Tensor, condition: dict[str, Tensor]) -> None:
    """See to it that training does not bring back what `slow` has left out."""
    for fast in _fast(adapter, x, condition):
        fast.mlp.register_forward_pre_hook(_Without(fast.steady))


def slow_while(
    on: list[str], adapter: Adapter, x: Tensor, condition: dict[str, Tensor]
) -> dict[str, Slowed]:
    """As `slow`, but only while the list `on`, of the network's LoRA adapters, is not empty.

    The network stays what it is, so that it is the teacher still. Returns what was done by the
    names of the MLPs, which no adapter should change: others stand in for them.
    """
    found = {}
    for fast in _fast(adapter, x, condition):
        stand_in = deepcopy(fast.mlp).requires_grad_(False)
        found[fast.name] = fast.fitted(stand_in)
        fast.mlp.register_forward_hook(_StandIn(stand_in, on))
    return found


class _Without:
    """A hook before an MLP that leaves out some of the sinusoids that it is given."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept.float()

    def __call__(self, module: nn.Module, given: Any) -> Any:
        self.kept = self.kept.to(given[0].device)
        return given[0] * self.kept.to(given[0].dtype), *given[1:]


class _StandIn:
    """A forward hook by which another module computes while the list `on` is not empty."""

    def __init__(self, module: nn.Module, on: list[str]) -> None:
        self.module, self.on = module, on

    def __call__(self, module: nn.Module, given: Any, out: Any) -> Any:
        return self.module.to(given[0].device)(*given) if self.on else out


@torch.no_grad()
def _fast(adapter: Adapter, x: Tensor, condition: dict[str, Tensor]) -> list[Fast]:
    """Those of its embeddings of time that have sinusoids faster than `FASTEST`."""
    if isinstance(adapter.path, EDM):  # whose time is slow, and infinite at data
        return []
    names = {id(module): name for name, module in adapter.named_modules()}
    t = torch.linspace(0, LAST, GRID, dtype=torch.float64, device=x.device)
    clock, found = adapter.clock(x, t), []
    for sinusoids, mlp, scale in list(_embeddings(adapter, x, condition)):
        curve = sinusoids((clock * scale).float())
        slope = curve.diff(dim=0) * ((GRID - 1) / LAST)
        steady = slope.square().mean(0).sqrt() <= FASTEST
        if not steady.all():
            found.append(Fast(names[id(mlp)], mlp, steady, curve[::STRIDE].clone()))
    return found


class _AllSeen(Exception):
    """All embeddings of time have been asked: what comes after them need not be computed."""


def _embeddings(
    adapter: Adapter, x: Tensor, condition: dict[str, Tensor]
) -> Iterator[tuple[nn.Module, nn.Module, float]]:
    """Modules of sinusoids, the MLPs behind them, and what the first get for a clock of 1."""
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
        if len(got) == len(pairs):
            raise _AllSeen

    hooks = [sinusoids.register_forward_pre_hook(note) for sinusoids, _ in pairs]
    t = torch.full((len(x),), 0.5, device=x.device)
    with contextlib.suppress(_AllSeen):
        adapter(x, t, condition)
    for hook in hooks:
        hook.remove()
    clock = adapter.clock(x, t)
    for sinusoids, mlp in pairs:
        if id(sinusoids) in got:
            yield sinusoids, mlp, float(got[id(sinusoids)].flatten()[0] / clock[0])


@torch.no_grad()
def _fit(mlp: nn.Module, curve: Tensor, steady: Tensor) -> float:
    """Fit an MLP to what it makes of all sinusoids (N, width), by those that are steady alone.

    Its first layer gets what the fast ones are on average, its second is the ridge regression on
    what the first then makes. Biases stay, for a LoRA has none: what would be in them is in the
    weights. Returns the root mean square error over the spread of what is to be made.
    """
    first, second = mlp.linear_1, mlp.linear_2
    wanted, ones = second(mlp.act(first(curve))), torch.ones_like(curve[:, :1])
    mean, curve = curve.mean(0) * ~steady, curve * steady
    first.weight += (first.weight @ mean)[:, None] * _ridge(curve, ones).T
    first.weight *= steady
    hidden = mlp.act(first(curve))
    left = wanted - second(hidden)
    second.weight += _ridge(hidden - hidden.mean(0), left - left.mean(0)).T
    second.weight += (wanted - second(hidden)).mean(0)[:, None] * _ridge(hidden, ones).T
    error = (second(hidden) - wanted).square().mean()
    return float((error / (wanted - wanted.mean(0)).square().mean()).sqrt())


def _ridge(given: Tensor, wanted: Tensor) -> Tensor:
    """The matrix (D, M) by which `given` (N, D) is nearest to `wanted` (N, M)."""
    x = given.double()
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, x.T @ wanted.double()).to(given)
