"""A student whose network has a first and a last time of its own."""

import math

import pytest
import torch

from scm_core.engine import sampling


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
