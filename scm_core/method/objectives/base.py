"""The base class of objectives, and what they may ask of the student in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from scm_core.method.samplers import Condition, Model
from scm_core.method.trigflow import Bounds, TrigFlow
from scm_core.method.weighting import per_sample


class Batch(Protocol):
    """Samples x (B, C, *grid) and their conditions, tensors of B rows by name."""

    x: Tensor
    condition: Condition


class Student(Protocol):
    """A network in training, in the phase that it is in.

    `teacher` is its guided teacher, a frozen `F = teacher(x, t, condition)`, or None; `bounds` are
    what decoding clips to, or None; `jvp` gives F and its tangent (see `scm_core.dual.jvp`).
    `step` counts the steps since the phase began, which has `steps`.
    """

    backbone: nn.Module
    teacher: Model | None
    path: TrigFlow
    sigma_data: float
    bounds: Bounds | None
    jvp: Callable[..., tuple[Tensor, Tensor]]
    step: int
    steps: int

    def noise(self, like: Tensor) -> Tensor:
        """N(0, sigma_data^2) of that shape (B, C, *grid), the same for any number of processes."""

    def noised(self, x0: Tensor, P_mean: float, P_std: float) -> tuple[Tensor, Tensor, Tensor]:
        """`(x_t, velocity, t)`, with t (B,) from the log-normal proposal of these parameters."""

    def times(self, steps: int) -> Tensor:
        """The falling times at which so many steps of its sampler are, float64 (steps,)."""

    def dropped(self, condition: Condition, share: float) -> Condition:
        """The condition, with a random share of its rows null."""


class Objective(nn.Module):
    """A loss, with whatever parameters of its own it trains beside the student's backbone.

    `monitors` is the name of that metric which tells how it goes; `cost` is that of a step in
    forward passes, a backward pass being two and the teacher unguided; `needs_teacher` says that it
    follows one. `betas` are Adam's in every phase that has this objective, `methods` are those of
    the backbone that it calls instead of `forward`, and `negative_times` says that it asks at times
    below 0, which a network that others have trained does not know. `Options` is a dataclass of
    plain types, whose `__post_init__` may raise ValueError.
    """

    @dataclass
    class Options:
        """None."""

    monitors: ClassVar[str] = "error"
    cost: ClassVar[float]
    needs_teacher: ClassVar[bool] = False
    betas: ClassVar[tuple[float, float] | None] = None
    methods: ClassVar[tuple[str, ...]] = ()
    negative_times: ClassVar[bool] = False

    def __init__(self, options: Any = None, teacher: nn.Module | None = None) -> None:
        """`teacher` is the network as it was trained, without guidance, for those that copy it."""
        super().__init__()
        self.options = options or self.Options()

    def loss(self, student: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Per-sample losses (N,) with their graph, and metrics without one.

        The metrics hold the one that `monitors` names, (N,) in units of the data, and may hold the
        times `t` (N,) that it belongs to; all others are (N,) or scalars.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Adam's groups of what is trained at a learning rate `lr` of its own; by default none.

        All other parameters have the learning rate of the phase.
        """
        return []

    def networks(self) -> list[nn.Module]:
        """Copies of the backbone among its modules: what is compiled and sharded as that is."""
        return []


def trainable_copy(network: nn.Module) -> nn.Module:
    """A copy of a network to train; one with a method of this name makes it in its own way."""
    own = getattr(network, "trainable_copy", None)
    return own() if own else copy.deepcopy(network).train().requires_grad_(True)


def require_choice(key: str, value: str, known: Sequence[str]) -> None:
    """ValueError where an option is none of those known."""
    if value not in known:
        raise ValueError(f"{key}={value} is none of {', '.join(known)}")


def require(fits: bool, key: str, value: object, what: str) -> None:
    """ValueError where an option is not what it must be."""
    if not fits:
        raise ValueError(f"{key}={value} must be {what}")


def require_proposal(options: Any) -> None:
    """ValueError where P_std is no standard deviation."""
    require(0 < options.P_std < float("inf"), "P_std", options.P_std, "a number above 0")


def repeat(x: Tensor, times: int) -> Tensor:
    """The batch, as often as `times`."""
    return x.repeat(times, *[1] * (x.ndim - 1))


def rms(x: Tensor, sigma_data: float) -> Tensor:
    """Root mean square per sample in units of the data, (B,), without a graph."""
    return per_sample(x.detach()).sqrt() / sigma_data
