"""What an evaluation says beside quality: consistency on trajectories, and memorised data."""

import math
from dataclasses import replace

import pytest
import torch
from test_evaluate import SPEC, ToyBackbone, ToyCodec, ToyConfig, ToyDataModule, ToyFeatures

from scm_core.contract.spec import SIGMA_DATA
from scm_core.engine import config
from scm_core.engine.checkpoint import Checkpoint
from scm_core.evaluation import neighbours, trajectories
from scm_core.evaluation.evaluator import Bench
from scm_core.method.samplers import LAST_TIME

N = 200


class Repeating(torch.nn.Module):
    """A "consistency function" that gives training samples, whatever it is asked: f(x, t) = one."""

    def __init__(self, known):
        super().__init__()
        self.known = torch.nn.Parameter(known)

    def forward(self, x, t, condition):
        chosen = self.known[(1e4 * x.flatten(1)[:, 0]).long() % len(self.known)]
        t = t[:, None, None]
        return (t.cos() * SIGMA_DATA * x - chosen) / (t.sin() * SIGMA_DATA)


def model(stage, backbone):
    return Checkpoint(
        path=None,
        stage=stage,
        step=1,
        spec=SPEC,
        config=config.defaults(SPEC),
        shape=(1, 8),
        condition=ToyDataModule.condition,
        statistics={},
        sigma_data=SIGMA_DATA,
        backbone=backbone,
        codec=ToyCodec(),
        places={},
    )


def toy(gain):
    backbone = ToyBackbone(8)
    backbone.student.data.fill_(gain)
    return backbone


def followed(gain, ends=None):
    """Of a student whose F is `gain` times that of the perfect one, on data N(0, sigma_data^2)."""
    student, teacher = model("student", toy(gain)), model("teacher", toy(0.0))
    if ends:
        student.backbone.ends = lambda last: ends
    condition = {"label": torch.arange(10) % 2}
    return trajectories.followed(student, teacher, condition, N, 0, 64, lambda n: None)


def test_a_perfect_consistency_function_stays_on_the_teachers_trajectories():
    found = followed(1.0)
    assert found["n"] == N and len(found["along"]) == 8
    assert found["along"][0]["t"] == pytest.approx(math.atan(80 / SIGMA_DATA))
    assert all(one["rms"] < 0.05 for one in found["along"])  # which is the solver's own error
    assert found["end_points"]["1"] < 0.05
    # Its second step starts from cos s x_0 + sin s z, of which it gives that very point here.
    second = math.sqrt((1 - math.cos(LAST_TIME)) ** 2 + math.sin(LAST_TIME) ** 2)
    assert found["end_points"]["2"] == pytest.approx(second, rel=0.1)
    assert found["two_step_end_point_floor"] == pytest.approx(second, rel=0.1)
    assert found["two_step_to_perfect"] < 0.05


def test_how_far_another_student_is_off_is_known_by_t():
    found = followed(0.5)
    expected = [0.5 * (1 - math.cos(one["t"])) for one in found["along"]]
    assert [one["rms"] for one in found["along"]] == pytest.approx(expected, abs=0.06)
    assert found["mean_rms"] == pytest.approx(sum(expected) / len(expected), abs=0.05)
    # Half of it in one step; then of cos s x / 2 + sin s z with f = (1 + cos s) / 2.
    c, s = math.cos(LAST_TIME), math.sin(LAST_TIME)
    shrunk = (1 + c) / 2
    off = math.hypot(c * (shrunk / 2 - 1), s * (shrunk - 1))
    assert found["two_step_to_perfect"] == pytest.approx(off, rel=0.1)
    normal = math.sqrt(2 / math.pi)  # mean magnitude of N(0, 1)
    assert found["mean_abs"] == pytest.approx(normal * found["mean_rms"], rel=0.1)


def test_two_steps_are_taken_where_the_students_backbone_takes_them():
    found = followed(1.0, ends=(1.5, 0.7))
    second = math.sqrt((1 - math.cos(0.7)) ** 2 + math.sin(0.7) ** 2)
    assert found["two_step_end_point_floor"] == pytest.approx(second, rel=0.1)
    assert found["two_step_to_perfect"] < 0.05


def test_trajectories_do_not_depend_on_batches():
    student, teacher = model("student", toy(0.7)), model("teacher", toy(0.0))
    condition = {"label": torch.arange(10) % 2}
    alone, parts = (
        trajectories.followed(student, teacher, condition, 20, 0, size, lambda n: None)["along"]
        for size in (20, 7)
    )
    for one, other in zip(alone, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("copies", [False, True])
def test_a_student_that_repeats_its_training_data_is_found_out(tmp_path, copies):
    data = ToyDataModule(ToyConfig().data)
    bench = Bench((ToyFeatures(),), lambda media, c: {}, N, 3, 64, torch.device("cpu"))
    reference = bench.reference(data, 600, lambda n: None)["toy"]
    backbone = Repeating(reference[:, None]) if copies else toy(1.0)
    condition = {"label": torch.ones(N, dtype=torch.long)}
    path = tmp_path / "nearest.png"
    found = neighbours.memorised(
        bench, model("student", backbone), data, reference, condition, path, lambda n: None
    )
    assert found["training"] == 600 and found["n"] == found["test"] == N
    assert path.read_bytes().startswith(b"\x89PNG")
    if copies:
        assert found["median_over_test"] < 0.01
        assert found["share_nearer_than_first_percentile"] > 0.99
    else:
        assert found["median_over_test"] == pytest.approx(1, abs=0.1)
        assert found["share_nearer_than_first_percentile"] < 0.05


def test_the_picture_shows_each_sample_beside_its_training_neighbours(tmp_path, monkeypatch):
    shown = []
    data = ToyDataModule(ToyConfig().data)
    bench = Bench((ToyFeatures(),), lambda media, c: {}, 10, 3, 64, torch.device("cpu"))
    reference = bench.reference(data, 600, lambda n: None)["toy"]

    class Watched(ToyCodec):
        def preview(self, values):
            shown.append(values)
            return super().preview(values)

    student = replace(model("student", Repeating(reference[:, None])), codec=Watched())
    condition = {"label": torch.ones(10, dtype=torch.long)}
    neighbours.memorised(
        bench, student, data, reference, condition, tmp_path / "nearest.png", lambda n: None
    )
    groups = shown[0].view(10, 1 + neighbours.NEAREST, 8)
    assert torch.allclose(groups[:, 0], groups[:, 1], atol=1e-4)
    apart = (groups - groups[:, :1]).norm(dim=2)
    assert (apart.diff(dim=1) >= -1e-6).all() and (apart[:, 2:] > 0.1).all()
