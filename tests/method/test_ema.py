"""The power-function average against its definition."""

import pytest
import torch
from torch import nn

from scm_core.method.ema import PowerEMA, power_exponent


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
