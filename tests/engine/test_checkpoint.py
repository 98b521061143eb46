"""An exported checkpoint holds a model: numbers in its weights, and a shape and scale that are."""

import math

import pytest
import torch
import toy_plugin
from hostile import SHIPPED, described
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scm_core.base.errors import UserError
from scm_core.engine import storage


@pytest.fixture
def diverged(tmp_path):
    """The shipped student with one weight that is none, in a folder of its own."""
    path = tmp_path / "model" / "student.safetensors"
    path.parent.mkdir()
    weights = load_file(SHIPPED)
    next(iter(weights.values())).view(-1)[0] = math.nan
    with safe_open(SHIPPED, "pt") as file:
        save_file(weights, path, file.metadata())
    return path


@pytest.mark.parametrize("command", ["sample", "evaluate", "hub"])
def test_weights_that_are_no_numbers_are_refused(refused, tmp_path, diverged, command):
    said = refused(command, f"checkpoint={diverged}", f"out={tmp_path}/out")
    assert "holds weights that are NaN or Inf" in said and not (tmp_path / "out").exists()


def test_they_are_not_passed_on_beside_a_good_student(refused, tmp_path, diverged):
    teacher = diverged.with_name("teacher.safetensors")
    diverged.rename(teacher)
    diverged.write_bytes(SHIPPED.read_bytes())
    for bits in (8, 16):
        said = refused("hub", f"checkpoint={diverged}", f"bits={bits}", f"out={tmp_path}/{bits}")
        assert "teacher.safetensors holds weights that are NaN or Inf" in said
        assert not (tmp_path / str(bits)).exists()


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_no_numbers_are_not_exported(tmp_path, monkeypatch, value):
    draw = toy_plugin.backbones.build

    def broken(*given):
        network = draw(*given)
        next(network.parameters()).data.fill_(value)
        return network

    monkeypatch.setattr(toy_plugin.backbones, "build", broken)
    with pytest.raises(UserError, match="is not written: training has diverged"):
        toy_plugin.write_student(tmp_path / "student.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "stated",
    [
        *({"sigma_data": value} for value in (0.0, -0.5, 1e-30, 1e30, math.nan, math.inf)),
        *({"shape": value} for value in ([1, 0, 28], [1, -28, 28], [], [1], [1, 28, 28.0])),
        {"step": -1},
    ],
)
def test_numbers_that_no_model_has_are_refused(refused, tmp_path, stated):
    path = described(tmp_path / "student.safetensors", **stated)
    (key,) = stated
    assert f"states {key}=" in refused("sample", f"checkpoint={path}", f"out={tmp_path}/out")


def test_eight_bit_numbers_of_any_kind_are_looked_at():
    strange = torch.tensor([1.0, math.nan])
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64):
        assert storage.no_numbers({"a": torch.ones(2), "b": strange.to(dtype)}) == "b"
    assert storage.no_numbers({"a": torch.ones(2, dtype=torch.int8)}) is None
