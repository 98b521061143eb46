"""Dual in two real processes: DDP, FSDP2 and Lightning give the gradient of the whole batch."""

import copy

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from scm_core.dual import jvp


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.time = nn.Linear(1, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 6)

    def forward(self, x, t, condition=None):
        return self.last(nn.functional.silu(self.norm(self.first(x)) + self.time(t[:, None])))


def data() -> tuple[torch.Tensor, ...]:
    """x (8, 6), t (8,) and their tangents."""
    generator = torch.Generator().manual_seed(0)
    x, dx = (torch.randn(8, 6, generator=generator) for _ in range(2))
    return x, torch.rand(8, generator=generator), dx, torch.rand(8, generator=generator)


def loss_of(module, x, t, dx, dt):
    """A loss in which both F and its tangent have a say."""
    out, tangent = jvp(module, (x, t), (dx, dt))
    return (out - out.detach() - tangent).square().mean()


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def whole_batch_gradients() -> list[torch.Tensor]:
    single = network()
    loss_of(single, *data()).backward()
    return [parameter.grad for parameter in single.parameters()]


def in_ddp(rank: int) -> list[torch.Tensor]:
    module = DistributedDataParallel(network())
    loss_of(module, *(z[rank::2] for z in data())).backward()
    return [parameter.grad for parameter in module.parameters()]


def in_fsdp2(rank: int) -> list[torch.Tensor]:
    module = network()
    for part in (module.first, module.last, module):
        fully_shard(part)
    loss_of(module, *(z[rank::2] for z in data())).backward()
    return [parameter.grad.full_tensor() for parameter in module.parameters()]


def process(rank: int, kind: str, store: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", world_size=2, rank=rank)
    gradients = {"ddp": in_ddp, "fsdp2": in_fsdp2}[kind](rank)
    torch.save(gradients, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_give_the_gradient_of_the_whole_batch(kind, tmp_path):
    spawn(process, (kind, str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    expected = whole_batch_gradients()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


class Student(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def training_step(self, batch, _):
        return loss_of(self.network, *batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def train(student: Student, **options) -> list[torch.Tensor]:
    """The weights after one step on the whole batch."""
    loader = DataLoader(TensorDataset(*data()), batch_size=8 // options.get("devices", 1))
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet, **options)
    trainer.fit(student, loader)
    return [parameter.detach() for parameter in student.parameters()]


def test_lightning_with_two_processes_takes_the_step_of_one():
    student = Student()
    expected = train(copy.deepcopy(student))
    strategy = DDPStrategy(process_group_backend="gloo", start_method="spawn")
    torch.testing.assert_close(train(student, devices=2, strategy=strategy), expected)
    assert not torch.equal(expected[0], network().first.weight)
