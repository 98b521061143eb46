"""Objectives against the closed forms of Gaussian data, in float64, and against their own words."""

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gaussian import Gaussian

from scm_core import TrigFlow
from scm_core.contract import objectives, plugins
from scm_core.method.objectives.consistency import Consistency
from scm_core.method.objectives.discrete_consistency import (
    DiscreteConsistency,
    discrete_loss,
    earlier_time,
)
from scm_core.method.objectives.endpoint import Endpoint
from scm_core.method.objectives.flow_anchor import FlowAnchor
from scm_core.method.proposal import LogNormalProposal
from scm_core.method.samplers import consistency_times
from scm_core.method.tangent import tangent
from scm_core.method.trigflow import expand_time

SD, N, D = 0.5, 64, 3
EXACT = Gaussian(0.3, 0.2, SD)
BUILT_IN = [entry.name for entry in plugins.installed("objective")]


class Student:
    """What objectives ask of a student, in float64."""

    path, sigma_data, bounds, steps = TrigFlow(SD), SD, None, 1600

    def __init__(self, backbone, teacher=None, step=0):
        self.backbone, self.teacher, self.step = backbone, teacher, step

    def jvp(self, model, values, directions, condition):
        return torch.func.jvp(lambda x, t: model(x, t, condition), values, directions)

    def noise(self, like):
        return SD * torch.randn_like(like)

    def noised(self, x0, P_mean, P_std):
        self.t = LogNormalProposal(P_mean, P_std, SD).sample(len(x0)).double()
        noise = self.noise(x0)
        self.x_t = self.path.interpolate(x0, noise, self.t)
        return self.x_t, self.path.velocity(x0, noise, self.t), self.t

    def times(self, steps):
        return consistency_times(steps, SD)

    def dropped(self, condition, share):
        return condition


def data(n=N, d=D):
    x0 = EXACT.mean + EXACT.std * torch.randn(n, d, dtype=torch.float64)
    return SimpleNamespace(x=x0, condition={})


def built(kind, **options):
    return kind(kind.Options(**options)).double()


def test_a_perfect_student_has_no_tangent_and_no_endpoint_error():
    student = Student(EXACT.student, EXACT.teacher, step=10_000)
    _, metrics = built(Consistency).loss(student, data())
    assert metrics["|g|"].max() < 1e-9
    fine = built(Endpoint, solver_steps=100, points=10)
    assert fine.loss(student, data())[1]["error"].max() < 2e-3  # the solver's own


def test_the_earlier_time_comes_nearer_over_the_phase():
    t = torch.linspace(0.01, 1.56, 50, dtype=torch.float64)
    r = torch.stack([earlier_time(t, stage, 2.0, SD)[0] for stage in range(1, 9)])
    assert (r >= 0).all() and (r < t).all()
    assert (r.diff(dim=0) >= 0).all() and (r[-1] > r[0]).all()
    assert (r[0, :5] == 0).all()  # at first a step from low noise is all the way to the data
    ratio = 1 - (r[-1].tan() / t.tan())
    torch.testing.assert_close(ratio, (1 + 8 * torch.sigmoid(-SD * t.tan())) / 2**8)


def test_a_step_is_one_however_short():
    t = torch.linspace(0.01, 1.56, 50)
    for q in (2.0, 4.0, 16.0):
        (_, step), (r, exact) = earlier_time(t, 8, q, SD), earlier_time(t.double(), 8, q, SD)
        torch.testing.assert_close(step, exact.float(), rtol=1e-3, atol=0)
        torch.testing.assert_close(exact, t.double().tan() - r.tan(), rtol=1e-3, atol=0)


def test_both_ends_of_a_step_see_the_same_dropout():
    drawn = []

    def backbone(x, t, condition):
        drawn.append(torch.rand(()))
        return EXACT.student(x, t)

    built(DiscreteConsistency).loss(Student(backbone, EXACT.teacher), data())
    assert len(drawn) == 2 and drawn[0] == drawn[1]


def test_what_a_discrete_step_costs_a_perfect_student_falls_with_the_step():
    """The teacher's step is Euler's: an error of its square, and of itself per unit of time."""
    jumps = []
    for step in (1000, 1200, 1400):  # each 1/2 of the step before
        torch.manual_seed(0)
        student = Student(EXACT.student, EXACT.teacher, step)
        jumps.append(built(DiscreteConsistency).loss(student, data())[1]["jump"].mean().item())
    assert jumps[0] / jumps[1] == pytest.approx(2, rel=0.05)
    assert jumps[1] / jumps[2] == pytest.approx(2, rel=0.05)


def test_small_discrete_steps_have_the_gradient_of_the_tangent():
    """`dL/dF = -2 sin t cos^2 t / (D sd) df/dt` as t - r goes to 0; g of sCD is `cos t df/dt`.

    `cos^2 t` is dt by the noise level `tan t`, whose step the loss is divided by.
    """
    shift = torch.zeros(N, D, dtype=torch.float64, requires_grad=True)

    def wobbly(x, t, condition=None):
        return torch.sin(2 * x) * t.cos()[:, None] + 0.3 * x**2 * t[:, None] + shift

    student = Student(wobbly, EXACT.teacher, step=1599)
    objective = built(DiscreteConsistency, metric="squared", stages=20, P_std=0.8)
    objective.loss(student, data())[0].sum().backward()
    x_t, t = student.x_t, student.t
    dxdt = SD * EXACT.teacher(x_t / SD, t)
    cs = t.cos() * t.sin()
    F, dF = torch.func.jvp(wobbly, (x_t / SD, t), (expand_time(cs, x_t) * dxdt / SD, cs))
    g = tangent(F, dF, x_t, dxdt, t, SD).detach()
    expected = -2 * cs[:, None] / (D * SD) * g
    torch.testing.assert_close(shift.grad, expected, rtol=1e-3, atol=1e-4)


def test_a_discrete_step_has_no_gradient_beyond_what_decoding_clips_to():
    shift = torch.zeros(N, D, dtype=torch.float64, requires_grad=True)
    student = Student(lambda x, t, c: torch.sin(2 * x) + shift, EXACT.teacher)
    student.bounds = low, high = torch.tensor(0.2), torch.tensor(0.4)
    built(DiscreteConsistency).loss(student, data())[0].sum().backward()
    F = student.backbone(student.x_t / SD, student.t, None).detach()
    reached = student.path.to_data(student.x_t, F, student.t)
    inside = (low < reached) & (reached < high)
    assert 0 < inside.sum() < inside.numel()
    assert (shift.grad[inside] != 0).all() and (shift.grad[~inside] == 0).all()


def test_without_a_teacher_a_step_keeps_the_noise():
    """Of one datum the data's own direction is the ODE's: the perfect student makes no jump."""
    dirac = Gaussian(0.3, 0.0, SD)
    student = Student(lambda x, t, c: torch.where(t[:, None] > 0, dirac.student(x, t), 0.0))
    x0 = SimpleNamespace(x=torch.full((N, D), 0.3, dtype=torch.float64), condition={})
    assert built(DiscreteConsistency).loss(student, x0)[1]["jump"].max() < 1e-9


def test_huber_is_squared_near_zero_and_the_root_far_away():
    error, step = torch.full((2, D), 1e-6), torch.tensor([0.1, 0.2])
    torch.testing.assert_close(
        discrete_loss(error.double(), step, 1e-3), 1e-12 / 2e-3 / step.double()
    )
    torch.testing.assert_close(discrete_loss(1e9 * error, step, 1e-3), (1e3 - 1e-3) / step)
    torch.testing.assert_close(discrete_loss(1e9 * error, step, 0.0), 1e6 / step)


def test_the_anchor_is_at_negative_times_alone():
    seen = []

    def both(x, t, condition):
        seen.append(t)
        return EXACT.teacher(x, -t) + 0 * t[:, None]

    loss, metrics = built(FlowAnchor).loss(Student(both, EXACT.teacher), data())
    assert (torch.cat(seen) < 0).all()
    assert metrics["velocity error"].max() < 1e-12 and loss.abs().max() < 1e-12


def test_the_anchor_reaches_its_floor_on_data():
    """A perfect anchor's error per element is sd^2 S^2 / V(t), as a diffusion teacher's."""
    student = Student(lambda x, t, condition: EXACT.teacher(x, -t))
    loss, _ = built(FlowAnchor).loss(student, data(20_000, 16))
    floor = SD**2 * EXACT.std**2 / EXACT.variance(student.t)
    assert (loss / floor).mean().item() == pytest.approx(1, rel=0.01)


COUNTED = sorted({*BUILT_IN} - {"reconstruction", "distribution_matching"})


@pytest.mark.parametrize("name", COUNTED)
def test_a_step_costs_what_it_says(name):
    """A forward pass with a graph counts 3, Dual's 4, one without a graph 1."""
    spent = []

    def network(x, t, condition):
        spent.append(len(x) / N * (3 if torch.is_grad_enabled() else 1))
        return EXACT.student(x, t.abs())

    student = Student(network, lambda x, t, condition: network(x, t, condition))
    objective = built(objectives.get(name))

    def jvp(*given, **more):
        spent.append(1)
        return Student.jvp(student, *given, **more)

    student.jvp = jvp
    with torch.enable_grad():
        objective.loss(student, data())
    assert sum(spent) == objective.cost


def test_the_table_in_the_docs_is_right():
    text = Path(__file__).parents[2].joinpath("docs", "objectives.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d.]+) \|$", text, re.M))
    assert rows == {name: f"{objectives.get(name).cost:g}" for name in BUILT_IN}


@pytest.mark.parametrize("name", BUILT_IN)
def test_its_file_is_short_and_imports_the_method_alone(name):
    value = next(e.value for e in plugins.installed("objective") if e.name == name)
    path = Path(__file__).parents[2] / (value.partition(":")[0].replace(".", "/") + ".py")
    text = path.read_text()
    others = re.findall(r"from (scm_core\.\w+)|import (scm_core\.\w+)", text)
    assert {one or other for one, other in others} <= {"scm_core.method", "scm_core.dual"}
    assert text.count("\n") < 130


def test_an_option_that_cannot_be_is_refused():
    for kind, key, value in (
        (DiscreteConsistency, "metric", "cubic"),
        (DiscreteConsistency, "q", 1.0),
        (FlowAnchor, "P_std", 0.0),
        (Consistency, "c", math.inf),
    ):
        with pytest.raises(ValueError, match=f"{key}={value}"):
            replace(kind.Options(), **{key: value})
