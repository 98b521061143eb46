"""Dual inside Lightning's DDP with two processes."""

import copy

import lightning
import pytest
import torch
from dual_networks import data, loss_of, perceptron
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset


class Student(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = perceptron()

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


@pytest.mark.slow  # its launcher sometimes aborts in the teardown of gloo
def test_lightning_with_two_processes_takes_the_step_of_one():
    student = Student()
    expected = train(copy.deepcopy(student))
    strategy = DDPStrategy(process_group_backend="gloo", start_method="spawn")
    torch.testing.assert_close(train(student, devices=2, strategy=strategy), expected)
    assert not torch.equal(expected[0], perceptron().first.weight)
