"""Networks of other families as F: on Gaussian data, whose best networks are known, in float64."""

import math

import pytest
import torch
from gaussian import Gaussian

from scm_core import dual
from scm_core.method.conversions import EDM, RectifiedFlow, VariancePreserving
from scm_core.method.trigflow import TrigFlow

MEAN, STD = 0.3, 0.7  # of x0
T = torch.linspace(0.05, 1.55, 7, dtype=torch.float64)
X = torch.randn(7, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ALPHA_BAR = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def expected(a, b, y):
    """E[x0] and E[e] given y = a x0 + b e."""
    a, b = (value[:, None, None] for value in (a, b))
    x0 = MEAN + a * STD**2 / (a**2 * STD**2 + b**2) * (y - a * MEAN)
    return x0, (y - a * x0) / b


def flow(y, u):
    x0, e = expected(1 - u, u, y)
    return e - x0


def alpha_bar(time):
    """At fractional times, linear in the angle."""
    angles = ALPHA_BAR.sqrt().acos()
    low = time.long().clamp(max=998)
    return torch.lerp(angles[low], angles[low + 1], time - low).cos() ** 2


def vp(predicts):
    def network(y, time):
        a, b = alpha_bar(time).sqrt(), (1 - alpha_bar(time)).sqrt()
        x0, e = expected(a, b, y)
        known = {"sample": x0, "epsilon": e}
        known["v_prediction"] = a[:, None, None] * e - b[:, None, None] * x0
        return known[predicts]

    return network


def edm(sd, sigma_of, sign):
    def network(y, time):
        sigma = sigma_of(time)
        norm = (sigma**2 + sd**2).sqrt()[:, None, None]
        x0, _ = expected(torch.ones_like(sigma), sigma, y * norm)
        sigma = sigma[:, None, None]
        skip = sd**2 / norm**2 * (y * norm)
        return -sign * (x0 - skip) / (sigma * sd / norm)

    return network


CASES = {
    "flow": (RectifiedFlow(), flow),
    "flow of 1000 steps": (RectifiedFlow(1000), lambda y, u: flow(y, u / 1000)),
    "reversed flow": (RectifiedFlow(1, reversed=True), lambda y, u: -flow(y, 1 - u)),
    **{name: (VariancePreserving(ALPHA_BAR, name), vp(name)) for name in ("epsilon", "sample")},
    "v": (VariancePreserving(ALPHA_BAR, "v_prediction"), vp("v_prediction")),
    "edm": (EDM(0.5), edm(0.5, lambda c: (4 * c).exp(), -1)),
    "edm of unit data": (EDM(1.0), edm(1.0, lambda c: (4 * c).exp(), -1)),
    "cosine edm": (EDM(1.0, True, 1), edm(1.0, lambda c: (c * math.pi / 2).tan(), 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_best_network_of_a_gaussian_becomes_its_velocity(name):
    known, network = CASES[name]
    F = known.velocity(X, T, network(*known.inputs(X, T)))
    exact = Gaussian(MEAN, STD, 1.0).velocity(X, T)
    torch.testing.assert_close(F, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_its_tangent_comes_with_it(name):
    known, network = CASES[name]

    def whole(x, t):
        y, time = known.inputs(x, t)
        return known.velocity(x, t, torch.sin(y) * (1 + torch.cos(time)).reshape(-1, 1, 1))

    t, dx, h = T[1:-1] + 1e-3, torch.cos(X[1:-1]), 1e-6
    x = X[1:-1]
    _, tangent = dual.jvp(whole, (x, t), (dx, torch.ones_like(t)))
    slope = (whole(x + h * dx, t + h) - whole(x - h * dx, t - h)) / (2 * h)
    torch.testing.assert_close(tangent, slope, rtol=1e-5, atol=1e-5)


def test_alpha_bar_of_the_steps_gives_back_their_numbers():
    known = VariancePreserving(ALPHA_BAR)
    t = ALPHA_BAR.sqrt().acos()
    _, time = known.inputs(X[:1].expand(1000, 3, 2), t)
    torch.testing.assert_close(time, torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=1e-6)
    _, time = known.inputs(X[:2], torch.tensor([0.0, math.pi / 2], dtype=torch.float64))
    assert time.tolist() == [0, 999]


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_beyond_the_last_time_the_data_stay_what_they_were_there(predicts):
    few = ALPHA_BAR[:500]
    known = VariancePreserving(few, predicts)
    end = torch.full((2,), float(few[-1].sqrt().acos()), dtype=torch.float64)
    x, output = X[:2], torch.tanh(X[:2])
    later = torch.tensor([1.5, math.pi / 2], dtype=torch.float64)
    path = TrigFlow(1.0)
    at_end = path.to_data(x, known.velocity(x, end, output), end)
    beyond = path.to_data(x, known.velocity(x, later, output), later)
    torch.testing.assert_close(beyond, at_end)


def test_other_predictions_are_refused():
    with pytest.raises(ValueError, match="predicts flow is not known"):
        VariancePreserving(ALPHA_BAR, "flow")
