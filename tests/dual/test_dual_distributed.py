"""Dual in two real processes: DDP and FSDP2 give the gradient of the whole batch."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from dual_networks import data, loss_of, perceptron
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel


def whole_batch_gradients() -> list[torch.Tensor]:
    single = perceptron()
    loss_of(single, *data()).backward()
    return [parameter.grad for parameter in single.parameters()]


def in_ddp(rank: int) -> list[torch.Tensor]:
    module = DistributedDataParallel(perceptron())
    loss_of(module, *(z[rank::2] for z in data())).backward()
    return [parameter.grad for parameter in module.parameters()]


def in_fsdp2(rank: int) -> list[torch.Tensor]:
    module = perceptron()
    for part in (module.first, module.last, module):
        fully_shard(part)
    loss_of(module, *(z[rank::2] for z in data())).backward()
    return [parameter.grad.full_tensor() for parameter in module.parameters()]


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", world_size=2, rank=rank)
    torch.save({"ddp": in_ddp(rank), "fsdp2": in_fsdp2(rank)}, f"{folder}/{rank}.pt")
    while not Path(folder, f"{1 - rank}.pt").exists():  # the other one still needs this process
        time.sleep(0.05)
    os._exit(0)  # gloo's threads sometimes abort the orderly exit, all work done and saved


@pytest.fixture(scope="module")
def gradients(tmp_path_factory) -> list[dict[str, list[torch.Tensor]]]:
    """What each of two processes got."""
    folder = tmp_path_factory.mktemp("processes")
    spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_give_the_gradient_of_the_whole_batch(kind, gradients):
    expected = whole_batch_gradients()
    for of_rank in gradients:
        torch.testing.assert_close(of_rank[kind], expected)
