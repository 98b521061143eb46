"""A network sharded over processes (FSDP2), and activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint, noop_context_fn


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The layers that a network lists and calls: what is sharded and checkpointed one by one."""
    for module in network.modules():
        for child in module if isinstance(module, nn.ModuleList) else ():
            if type(child).forward is not nn.Module.forward and any(
                True for _ in child.parameters()
            ):
                yield child


def shard(network: nn.Module, mesh: DeviceMesh, methods: Iterable[str] = ()) -> None:
    """Spread a network's parameters over the mesh, block by block.

    `methods` are those that evaluate it beside `forward`; a network's `outside` are modules of its
    blocks that it calls from outside of them.
    """
    for parameter in network.parameters():  # a shard knows no other layout
        if not isinstance(parameter, DTensor):
            parameter.data = parameter.data.contiguous()
    for module in (*getattr(network, "outside", ()), *blocks(network), network):
        if not isinstance(module, FSDPModule):  # of a network inside, which is sharded already
            # An adapter's layers are of the network that it adapts, and sharded with that.
            known = {p for p in module.parameters() if isinstance(p, DTensor)}
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=known)
    for name in methods:
        register_fsdp_forward_method(network, name)


def recompute(
    network: nn.Module, context_fn: Callable[[], tuple[Any, Any]] = noop_context_fn
) -> None:
    """Activation checkpointing: the backward pass computes what is within a block once more.

    `context_fn` as of `torch.utils.checkpoint.checkpoint`.
    """
    for block in blocks(network):
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=context_fn
        )


def local(x: Tensor) -> Tensor:
    """What of a tensor lies in this process: its shard, or all of it where it is not sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def gathered(x: Tensor, like: Tensor) -> Tensor:
    """The whole of which `x` is the local part, sharded as `like` is; all processes take part."""
    if not isinstance(like, DTensor):
        return x
    whole = DTensor.from_local(
        x.to(like.device),
        like.device_mesh,
        like.placements,
        shape=like.shape,
        stride=like.stride(),
    )
    return whole.full_tensor().cpu()


def scattered(whole: Tensor, like: Tensor) -> Tensor:
    """The inverse of `gathered`: this process's part of a tensor that each of them has whole."""
    if not isinstance(like, DTensor):
        return whole
    there = whole.to(like.device)
    return distribute_tensor(
        there, like.device_mesh, like.placements, src_data_rank=None
    ).to_local()


@torch.no_grad()
def overwrite(module: nn.Module, parts: Mapping[str, Tensor]) -> None:
    """Overwrite a module's state by the local parts of another."""
    for key, value in module.state_dict().items():
        local(value).copy_(parts[key])
