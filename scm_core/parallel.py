"""Several processes: who they are, how they share a batch, and how a network is sharded (FSDP2).

Processes share one batch and its noise: rank r of w has rows r, r + w, ... of what one process
would have drawn. So their number changes neither the samples nor the noise that a step learns from.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def world() -> tuple[int, int]:
    """How many processes work together, and which of them this is."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within it, the processes that torchrun started work together without a Trainer."""
    together = "TORCHELASTIC_RUN_ID" in os.environ
    if together:
        distributed.init_process_group("gloo")
    try:
        yield
    finally:
        if together:
            distributed.destroy_process_group()


def device() -> torch.device:
    """The best device of this process."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    place = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))
    return torch.device("cuda", int(place))


def devices(asked: str) -> dict[str, int | str]:
    """The Trainer's `devices` and `num_nodes`: what torchrun or SLURM has settled, or as asked."""
    nodes = int(os.environ.get("SLURM_NNODES", 1))
    if asked == "auto" and "TORCHELASTIC_RUN_ID" in os.environ:
        here, all_of_them = (int(os.environ[key]) for key in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        asked, nodes = str(here), all_of_them // here
    return {"devices": int(asked) if asked.lstrip("-").isdigit() else asked, "num_nodes": nodes}


def shared(draw: Callable[[int], Tensor], n: int) -> Tensor:
    """This process's `n` rows of what `draw(number of rows)` gives for all of them.

    They all start from one seed, so each draws the same and keeps its own.
    """
    size, rank = world()
    return draw(n * size)[rank::size]


def randn_like(x: Tensor) -> Tensor:
    """Noise like x (B, ...), whose rows are this process's share."""
    return shared(lambda n: torch.randn(n, *x.shape[1:], dtype=x.dtype, device=x.device), len(x))


def every(value: T) -> list[T]:
    """The values of all processes, in their order; small things only."""
    size, _ = world()
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    distributed.all_gather_object(values, value)
    return values


def turns(parts: Iterable[T]) -> list[T]:
    """Of parts that processes take in turn, this one's."""
    size, rank = world()
    return list(parts)[rank::size]


def in_turn(mine: list[T]) -> list[T]:
    """What all processes made of their `turns`, in the order of the parts."""
    shares = every(mine)
    return [share[i] for i in range(len(shares[0])) for share in shares if i < len(share)]


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The layers that a network lists and calls: what sharding and recomputing take one by one."""
    for module in network.modules():
        for child in module if isinstance(module, nn.ModuleList) else ():
            if type(child).forward is not nn.Module.forward and any(
                True for _ in child.parameters()
            ):
                yield child


def shard(network: nn.Module, mesh: DeviceMesh, methods: Iterable[str] = ()) -> None:
    """Spread a network's parameters over the mesh, block by block.

    `methods` are those that evaluate it beside `forward`.
    """
    for parameter in network.parameters():  # a shard knows no other layout
        parameter.data = parameter.data.contiguous()
    for module in (*blocks(network), network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for name in methods:
        register_fsdp_forward_method(network, name)


def recompute(network: nn.Module) -> None:
    """Let blocks forget their activations, which are computed again on the way back."""
    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


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
def load(module: nn.Module, parts: Mapping[str, Tensor]) -> None:
    """Overwrite a module's state by the local parts of another."""
    for key, value in module.state_dict().items():
        local(value).copy_(parts[key])
