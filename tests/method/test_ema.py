"""The power-function average against its definition."""

import pytest
import torch
from torch import nn

from scm_core.method.ema import PowerEMA, power_exponent, reconstruction


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_exponent_gives_the_asked_width(sigma_rel):
    gamma = power_exponent(sigma_rel)
    width = (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)
    assert width == pytest.approx(sigma_rel)


def test_average_weighs_the_past_by_a_power():
    """The profile over steps 1..n is proportional to step^gamma, up to its discretisation."""
    module = nn.Linear(1, 1, bias=False).double()
    n, sigma_rel = 400, 0.1
    gamma = power_exponent(sigma_rel)
    ema = PowerEMA(module.state_dict(), sigma_rel)
    for step in range(1, n + 1):
        module.weight.data.fill_(step)
        ema.update()
    steps = torch.arange(1, n + 1, dtype=torch.float64)
    weights = steps**gamma
    expected = (weights * steps).sum() / weights.sum()
    assert ema.average["weight"].item() == pytest.approx(expected.item(), rel=0.005)


def test_the_first_update_forgets_the_start():
    module = nn.Linear(2, 2)
    ema = PowerEMA(module.state_dict(), 0.05)
    nn.init.ones_(module.weight)
    ema.update()
    assert torch.equal(ema.average["weight"], module.weight)


def test_state_round_trip():
    module = nn.Linear(2, 2)
    ema = PowerEMA(module.state_dict(), 0.05)
    for _ in range(3):
        module.weight.data.normal_()
        ema.update()
    other = PowerEMA(nn.Linear(2, 2).state_dict(), 0.05)
    other.load_state_dict(ema.state_dict())
    assert other.step == 3
    assert torch.equal(other.average["weight"], ema.average["weight"])


@pytest.mark.parametrize("sigma_rel", [0.0, 0.3, -1.0])
def test_impossible_widths_are_refused(sigma_rel):
    with pytest.raises(ValueError, match="ema"):
        power_exponent(sigma_rel)


def averages(path, sigma_rel, steps):
    """The averages of that width after these steps along a path of weights (N, D), float64."""
    weights = {"w": path[0].clone()}
    ema, found = PowerEMA(weights, sigma_rel), {}
    for step, now in enumerate(path, 1):
        weights["w"].copy_(now)
        ema.update()
        if step in steps:
            found[step] = ema.average["w"].clone()
    return found


def walk(n, d=8):
    """A path of weights: a drift that comes to rest, and a random walk."""
    torch.manual_seed(0)
    time = torch.arange(n, dtype=torch.float64)[:, None] / n
    noise = torch.randn(n, d, dtype=torch.float64).cumsum(0) / n**0.5
    return torch.exp(-3 * time) * torch.arange(1.0, d + 1) + 0.3 * noise


@pytest.mark.parametrize(
    ("sigma_rel", "share"), [(0.03, 0.04), (0.07, 0.01), (0.1, 1e-6), (0.15, 0.01), (0.2, 0.1)]
)
def test_a_width_is_rebuilt_after_the_run(sigma_rel, share):
    """Against the average of that width, kept from the beginning: what is missed of it, and by how
    much it is off beside what the weights move in the last fifth."""
    n, kept = 960, range(60, 961, 60)
    path = walk(n)
    snapshots = {
        (step, width): average
        for width in (0.05, 0.1)
        for step, average in averages(path, width, kept).items()
    }
    factors, missed = reconstruction(list(snapshots), n, sigma_rel)
    rebuilt = (factors[:, None] * torch.stack(list(snapshots.values()))).sum(0)
    exact = averages(path, sigma_rel, [n])[n]
    spread = (path[-200:] - path[-200:].mean(0)).square().mean().sqrt()
    assert missed < share
    assert (rebuilt - exact).square().mean().sqrt() < share * spread
    assert factors.sum() == pytest.approx(1)


def test_a_width_that_was_kept_is_itself():
    known = [(50, 0.05), (100, 0.05), (50, 0.1), (100, 0.1)]
    factors, missed = reconstruction(known, 100, 0.1)
    torch.testing.assert_close(factors, torch.tensor([0, 0, 0, 1.0]).double(), atol=1e-9, rtol=0)
    assert missed < 1e-6
