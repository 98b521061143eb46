"""A student whose network has a first and a last time of its own."""

import math
from types import SimpleNamespace

import pytest
import torch

from scm_core.engine import sampling
from scm_core.method.samplers import consistency_times, ends


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_it_is_evaluated_from_the_one_to_the_other(steps):
    seen = []

    def network(x, t, condition):
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    draw = sampling.sampler("consistency", steps, 0.5, ends=(math.pi / 2, 0.9))
    draw(network, torch.randn(2, 3, dtype=torch.float64), {})
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == steps
    assert seen[0] == pytest.approx(math.pi / 2)
    assert seen[-1] == pytest.approx(0.9 if steps > 1 else math.pi / 2)


def test_a_network_may_know_its_own():
    assert ends(None, 0.5, 0.5) == (math.atan(160), 0.5)
    assert ends(SimpleNamespace(ends=lambda last: (1.5, last)), 0.4, 0.5) == (1.5, 0.4)
    assert ends(SimpleNamespace(ends=lambda last: None), 0.4, 0.5) == (math.atan(160), 0.4)


def test_times_fall_to_a_late_last_one_too():
    times = consistency_times(4, 0.5, (1.56, 1.4))
    assert times.tolist() == pytest.approx([1.56, 1.48, 1.44, 1.4])
