"""Networks that torch.compile has been given."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import nn

COMPILED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def compiled(network: nn.Module, methods: Iterable[str] = ()) -> None:
    """Compile what evaluates a network, in place: its call, or those `methods` of it.

    Batches of another size are another graph, of fixed shapes, of which a stage has a few.
    """
    torch._dynamo.config.recompile_limit = 32
    COMPILED.add(network)
    for name in methods:
        setattr(network, name, torch.compile(getattr(network, name), dynamic=False))
    if not methods:
        network.compile(dynamic=False)


def is_compiled(network: nn.Module) -> bool:
    """Whether that has been done: then its weights keep their dtype, for which code was made.

    Torch 2.11 runs that code on weights of another dtype as well, and reads beyond them.
    """
    return network in COMPILED
