"""Replayed evaluations: what is cast once and for all, and when a recording takes over."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scm_core.engine import checkpoint, replay
from scm_core.engine.compilation import compiled
from scm_core.engine.replay import KEPT, Replayed, cast_once

STUDENT = Path(__file__).parents[2] / "checkpoints" / "image" / "student.safetensors"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture
def student():
    return checkpoint.load(STUDENT)


def drawn(student, n=2):
    """Arguments of the student's evaluation."""
    return torch.randn(n, *student.shape), torch.full((n,), 1.1), {"label": torch.arange(n)}


class Readings(nn.Module):
    """Parameters that are read in single precision, in half, in both, or not at all."""

    def __init__(self):
        super().__init__()
        self.weight, self.gain, self.both, self.halves, self.precise, self.unread = (
            nn.Parameter(torch.rand(4, 4)) for _ in range(6)
        )

    def forward(self, x):
        x = F.linear(x, self.weight) * self.gain
        x = F.linear(x, self.both) + self.both
        x = F.linear(x, self.halves) + self.halves.to(FP16)
        return x + self.precise.double()


@torch.no_grad()
def test_only_what_is_read_in_half_alone_is_stored_in_half():
    network, x = Readings(), torch.randn(3, 4)

    def evaluate():
        with torch.autocast("cpu", BF16):
            return network(x[:, None])

    before = evaluate()
    cast_once(network, evaluate)
    dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
    assert dtypes.pop("weight") == BF16
    assert set(dtypes.values()) == {FP32}
    assert torch.equal(evaluate(), before)


@torch.no_grad()
def test_casting_a_network_once_changes_no_bit(student):
    arguments = drawn(student)

    def evaluate():
        with torch.autocast("cpu", BF16):
            return student.backbone(*arguments)

    before, parameters = evaluate(), dict(student.backbone.named_parameters())
    cast_once(student.backbone, evaluate)
    assert torch.equal(evaluate(), before)
    cast = {name for name, parameter in parameters.items() if parameter.dtype == BF16}
    kept = {name for name, parameter in parameters.items() if parameter.dtype == FP32}
    assert cast | kept == set(parameters)
    size = sum(parameters[name].numel() for name in cast)
    assert size > 0.9 * sum(parameter.numel() for parameter in parameters.values())
    assert any("fields.label" in name for name in kept)  # an embedding is looked up as it is


def test_nothing_is_cast_without_autocast(student):
    cast_once(student.backbone, lambda: student.backbone(*drawn(student)))
    assert {parameter.dtype for parameter in student.backbone.parameters()} == {FP32}


def test_on_a_cpu_it_is_the_model_itself(student):
    x, t, condition = drawn(student)
    replayed = Replayed(student.backbone, student.backbone)
    with torch.no_grad():
        expected = student.backbone(x, t, condition)
        for _ in range(3):
            assert torch.equal(replayed(x, t, condition), expected)
    replayed(x.requires_grad_(), t, condition).sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.dtype == FP32 and p.grad is not None for p in student.backbone.parameters())
    assert not replayed.recordings


made = []  # how many rows each recording is of


class Recorded:
    """In place of a recording: says that it was replayed."""

    def __init__(self, model, arguments):
        self.rows = arguments[0].shape[0]
        made.append(self.rows)

    def __call__(self, x, t, condition):
        assert x.shape[0] == self.rows
        return "replayed"


@pytest.fixture
def evaluate(monkeypatch):
    """Evaluate a replayed model on a batch of some rows, as on a GPU."""
    made.clear()
    monkeypatch.setattr(replay, "Recording", Recorded)
    replayed = Replayed(lambda *_: "evaluated", nn.Linear(1, 1))

    def evaluate(rows, dtype=FP32, condition=True):
        x = SimpleNamespace(is_cuda=True, shape=torch.Size([rows, 1]), dtype=dtype)
        return replayed(x, torch.zeros(rows), {"label": torch.zeros(rows)} if condition else None)

    with torch.no_grad():
        yield evaluate


def test_the_second_use_of_a_shape_records_it(evaluate):
    assert [evaluate(4) for _ in range(4)] == ["evaluated"] + ["replayed"] * 3
    assert [evaluate(4, BF16) for _ in range(2)] == ["evaluated", "replayed"]
    assert [evaluate(5) for _ in range(2)] == ["evaluated", "replayed"]
    assert made == [4, 4, 5]


def test_gradients_and_no_condition_are_never_replayed(evaluate):
    assert [evaluate(4, condition=False) for _ in range(3)] == ["evaluated"] * 3
    with torch.enable_grad():
        assert [evaluate(4) for _ in range(3)] == ["evaluated"] * 3
    assert not made


def test_a_compiled_network_is_neither_cast_nor_recorded(evaluate, monkeypatch):
    network, untouched = nn.Linear(1, 1), []
    compiled(network)
    monkeypatch.setattr(replay, "cast_once", lambda network, _: untouched.append(network))
    replayed = Replayed(lambda *_: "evaluated", network)
    x = SimpleNamespace(is_cuda=True, shape=torch.Size([4, 1]), dtype=FP32)
    for _ in range(3):
        assert replayed(x, torch.zeros(4), {"label": torch.zeros(4)}) == "evaluated"
    assert not made and not untouched


def test_the_recording_used_longest_ago_makes_room(evaluate):
    for rows in range(1, KEPT + 1):
        evaluate(rows), evaluate(rows)
    evaluate(1)
    evaluate(KEPT + 1), evaluate(KEPT + 1)  # in the place of 2
    made.clear()
    for rows in (1, *range(3, KEPT + 2)):
        assert evaluate(rows) == "replayed"
    assert not made
    assert evaluate(2) == "replayed" and made == [2]


def test_a_model_that_cannot_be_recorded_is_evaluated_for_good(evaluate, monkeypatch):
    evaluate(4), evaluate(4)

    def refuse(model, arguments):
        made.append("refused")
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replay, "Recording", refuse)
    assert [evaluate(5) for _ in range(4)] == ["evaluated"] * 4
    assert [evaluate(rows) for rows in (4, 6, 6)] == ["evaluated"] * 3
    assert made == [4, "refused"]
