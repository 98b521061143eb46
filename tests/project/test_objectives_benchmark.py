"""What the comparison of objectives adds to the project's own training: plan, judges, table."""

import json

import pytest
import torch
from objectives import VARIANTS, Comparison, Variant, steps_of
from objectives_table import curves, table
from tangents import Unmasked
from torch import nn

from scm_core import TrigFlow
from scm_core.contract.objectives import get
from scm_core.method.objectives.consistency import Consistency

SD = 0.5


class Student:
    """A linear student in float64, with bounds that most samples exceed."""

    path, sigma_data, teacher, step = TrigFlow(SD), SD, None, 10_000
    bounds = torch.tensor(-0.1), torch.tensor(0.1)

    def __init__(self):
        self.backbone = nn.Linear(3, 3).double()

    def jvp(self, model, values, directions, condition):
        return torch.func.jvp(lambda x, t: model(x) * t[:, None], values, directions)

    def noised(self, x0, *_):
        t = torch.linspace(0.1, 1.4, len(x0), dtype=torch.float64)
        noise = SD * torch.ones_like(x0)
        return self.path.interpolate(x0, noise, t), self.path.velocity(x0, noise, t), t


def test_unmasked_is_the_loss_without_bounds():
    torch.manual_seed(0)
    student = Student()
    batch = type("Batch", (), {"x": torch.randn(8, 3, dtype=torch.float64), "condition": {}})
    options = {"tangent_warmup": 0, "norm": "l2"}
    free, masked = (
        kind(kind.Options(**options)).double().loss(student, batch)[1]["|g|"]
        for kind in (Unmasked, Consistency)
    )
    assert student.bounds is Student.bounds and (masked < free).any()
    student.bounds = None
    bare = Consistency(Consistency.Options(**options)).double().loss(student, batch)[1]["|g|"]
    torch.testing.assert_close(free, bare)


def test_the_variants_name_objectives_that_there_are():
    for variant in VARIANTS.values():
        for name in variant.weights:
            get(name)


@pytest.fixture
def comparison():
    """One in which a step of mid-training costs 0.1 s and of anything else 0.5 s."""
    made = Comparison.__new__(Comparison)
    made.given = type("Given", (), {"mid": 0.25, "seconds": 40.0})
    made.cost = lambda student: 0.1 if "endpoint" in student["phases"][0] else 0.5
    return made


def test_time_is_shared_by_what_steps_cost_and_steps_by_their_number(comparison):
    variant = VARIANTS["score-0.1"]
    timed = comparison.plan(variant, None)
    assert [phase["steps"] for phase in timed["phases"]] == [100, 60]
    assert timed["phases"][1] | {"steps": 0} == {
        **{"consistency": 1, "distribution_matching": 0.1},
        **{"lr": 1e-4, "lr_warmup": 6, "steps": 0},
    }
    assert timed["options"]["consistency"] == {"norm": "l2", "c": 0.1, "tangent_warmup": 18}
    assert [phase["steps"] for phase in comparison.plan(variant, 80)["phases"]] == [20, 60]
    (only,) = comparison.plan(VARIANTS["mid"], None)["phases"]
    assert only["steps"] == 400
    (cold,) = comparison.plan(VARIANTS["l2-teacher"], None)["phases"]
    assert cold["steps"] == 80 and steps_of({"phases": [cold, only]}) == 480
    assert comparison.plan(Variant("", {"consistency": 1}, optimizer="radam"), 8)["optimizer"]


def test_networks_are_judged_in_the_precision_that_they_train_in_and_judges_are_not(comparison):
    def autocast():
        return torch.autocast("cpu", torch.bfloat16)

    class Judge:
        def tangent(self, stage):
            return {"|g|": torch.is_autocast_enabled("cpu")}

        def samples(self, model, sampler, steps):
            return {
                "dtype": model(torch.ones(1, 1)).dtype,
                "cast": torch.is_autocast_enabled("cpu"),
            }

    comparison.judge, comparison.given.points = Judge(), 2
    watch = comparison.watch({"phases": [{"steps": 3}, {"steps": 4}]})
    assert watch.at == [3, 7]
    stage = type("Stage", (), {"backbone": nn.Linear(1, 1)})
    assert watch.judge(stage, False, autocast) == {
        "|g|": True,
        "dtype 2": torch.bfloat16,
        "cast 2": False,
    }
    assert {f"cast {steps}" for steps in (1, 2, 4)} < watch.judge(stage, True, autocast).keys()


def test_the_table_has_means_and_spreads_over_seeds():
    points = {"step": 10, "seconds": 3.0, "|g|": 0.2, "error": 0.1}
    for k in (1, 2, 4):
        points |= {f"fd_a {k}": 300.0 / k, f"class_accuracy {k}": 0.9}
        points |= {f"precision_a {k}": 0.8, f"recall_a {k}": 0.4}
    other = {key: value + 1 for key, value in points.items()}
    found = {
        "about": {"batch": 8, "accumulate": 2, "n": 2000},
        "teacher": {"fd_a": 123.4, "precision_a": 0.7, "recall_a": 0.5, "class_accuracy": 0.97},
        "runs": {"x/time/0": {"points": [points]}, "x/time/1": {"points": [other]}},
    }
    text = table(json.loads(json.dumps(found)), {"x": "an objective", "y": "not run"}, ["a"])
    lines = text.strip().splitlines()
    assert "Equal time: batches of 16" in lines[0] and "Equal samples" not in text
    assert lines[-2] == "| teacher |  |  |  | 123 | 0.7 | 0.5 | 0.97 |  |  |"
    assert lines[-1].startswith("| an objective | 4 | 10 | 168 | 300 ± 0.71 / 150 ± 0.71 / 75.5 ")
    drawn = curves(found["runs"], {"x": "an objective"}, "samples", "fd_a 2", 16)
    assert drawn == {}
    assert curves(found["runs"], {"x": "an objective"}, "time", "fd_a 2", 16) == {
        "an objective": [(3.5, 150.5)]
    }
