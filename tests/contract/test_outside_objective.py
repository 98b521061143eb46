"""Objectives of other packages: found, checked, trained with; and what is wrong with bad ones."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from strangers import install
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from scm_core import UserError
from scm_core.contract import objectives, plugins
from scm_core.engine import run
from scm_core.method.objectives import Objective
from scm_core.testing import check_objective

DOCS = Path(__file__).parents[2] / "docs" / "objectives.md"
TOY = ["modality=toy_plugin:SPEC", "preset=cpu", "trainer.accelerator=cpu", "trainer.log_every=1"]


@pytest.fixture
def denoise(tmp_path, monkeypatch):
    """The example of the docs, as an installed package."""
    (code,) = re.findall(r'```python title="denoise.py"\n(.*?)```', DOCS.read_text(), re.S)
    assert code.count("\n") < 40
    folder = tmp_path / "package"
    install(folder, "denoise", "denoise:Denoise", monkeypatch, "stranger_denoise", kind="objective")
    (folder / "denoise.py").write_text(code)
    return "denoise"


def train(out, *words):
    run.main([*TOY, *words, f"out={out}"])
    with safe_open(out / "student.safetensors", "pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def test_an_installed_objective_trains_beside_a_built_in_one(denoise, tmp_path):
    phases = "[{denoise: 1, steps: 2, lr: 1e-3}, {flow_anchor: 0.5, denoise: 1, steps: 3}]"
    words = [f"student.phases={phases}", "teacher.max_steps=2", "student.options.denoise.P_std=1"]
    about = train(tmp_path, *words)
    assert about["step"] == 5
    assert about["config"]["student"]["options"]["denoise"] == {"P_mean": -0.8, "P_std": 1.0}
    events = EventAccumulator(str(tmp_path / "logs" / "student"))
    events.Reload()
    assert [event.step for event in events.Scalars("error")] == [1, 2]
    assert [event.step for event in events.Scalars("velocity error")] == [3, 4, 5]
    assert [event.step for event in events.Scalars("denoise/error")] == [3, 4, 5]
    state = torch.load(tmp_path / "student" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["objectives.denoise.weight.head.bias"].any()


def test_an_uninstalled_one_is_named_by_its_import_path(denoise, tmp_path):
    words = ["student.phases=[{denoise:Denoise: 1, steps: 2}]", "teacher.max_steps=1"]
    assert train(tmp_path, *words)["step"] == 2


def test_the_example_passes_the_check(denoise):
    report = check_objective(objectives.get(denoise))
    assert report.ok, str(report)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 1, 3, padding=1)

    def encode(self, x):
        return self.inner(x)

    def decode(self, z):
        return self.outer(z)


@pytest.mark.parametrize("name", [entry.name for entry in plugins.installed("objective")])
def test_every_built_in_one_passes_the_check(name):
    backbone = Autoencoder() if name == "reconstruction" else None
    report = check_objective(objectives.get(name), backbone)
    assert report.ok, str(report)


class Good(Objective):
    def loss(self, student, batch):
        t = torch.rand(len(batch.x))
        F = student.backbone(batch.x, t, batch.condition)
        error = F.square().flatten(1).mean(1)
        return error, {"error": error.detach(), "t": t}


class Unmonitored(Good):
    monitors = "distance"


class Scalar(Good):
    def loss(self, student, batch):
        loss, metrics = super().loss(student, batch)
        return loss.mean(), metrics


class Kept(Good):
    def loss(self, student, batch):
        loss, metrics = super().loss(student, batch)
        return loss, {**metrics, "error": loss}


class Cut(Good):
    def loss(self, student, batch):
        loss, metrics = super().loss(student, batch)
        return loss.detach() + torch.zeros((), requires_grad=True), metrics


class Rooted(Good):
    """Its loss is fine, its gradient is not."""

    def loss(self, student, batch):
        loss, metrics = super().loss(student, batch)
        return loss + (0 * loss).sqrt(), metrics


class Counting(Good):
    """Has state that no checkpoint holds."""

    count = 0

    def loss(self, student, batch):
        loss, metrics = super().loss(student, batch)
        self.count += 1
        return self.count * loss, metrics


class Foreign(Good):
    def parameter_groups(self):
        return [{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3}]


class Led(Good):
    def loss(self, student, batch):
        return super().loss(student, batch) if student.teacher else 1 / 0


@pytest.mark.parametrize(
    ("kind", "failed"),
    [
        (Good, []),
        (Unmonitored, ["losses"]),
        (Scalar, ["losses"]),
        (Kept, ["losses"]),
        (Cut, ["gradients"]),
        (Rooted, ["gradients", "two steps"]),
        (Counting, ["resumed"]),
        (Foreign, ["groups"]),
        (Led, ["without teacher"]),
    ],
)
def test_the_check_finds_what_is_wrong(kind, failed):
    report = check_objective(kind)
    assert {*failed} <= {*report.failed()} and (failed or report.ok), str(report)


def test_what_is_no_objective_is_one_sentence(tmp_path, monkeypatch):
    install(tmp_path, "twin", "first:CLASS", monkeypatch, "stranger_one", kind="objective")
    install(tmp_path, "twin", "second:CLASS", monkeypatch, "stranger_two", kind="objective")
    for name, sentence in (
        ("consistensy", "no objective is called consistensy; did you mean consistency?"),
        ("twin", "two objectives are called twin, first:CLASS and second:CLASS"),
        ("no_such_module:CLASS", "objective no_such_module:CLASS (no_such_module:CLASS) is broken"),
        ("math:pi", "objective math:pi: math:pi is no subclass of Objective"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            objectives.get(name)
