"""Samplers against the exact flow of Gaussian data: order, agreement with EDM, NFE."""

import math
from functools import partial

import pytest
import torch
from gaussian import Gaussian

from scm_core import TrigFlow
from scm_core.contract.fields import Label, null_condition
from scm_core.engine import sampling
from scm_core.method import samplers
from scm_core.method.guidance import Guided

SD = 0.5
EXACT = Gaussian(0.3, 0.2, SD)
NOISE = SD * torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def error(sampler, steps):
    """How far a sampler ends from the flow map over [1.5, 0.05], in equal steps."""
    times = torch.linspace(1.5, 0.05, steps + 1, dtype=torch.float64)
    end = EXACT.flow_map(NOISE, times[0], times[-1])
    return (sampler(EXACT.teacher, NOISE, times, SD)[-1] - end).abs().max().item()


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(samplers.ddim, 1), (samplers.heun, 2), (samplers.dpm_solver, 2)],
)
def test_order_of_convergence(sampler, order):
    observed = math.log2(error(sampler, 128) / error(sampler, 256))
    assert observed == pytest.approx(order, abs=0.15)


def test_heun_is_edms_algorithm():
    """EDM's algorithm 1 in (x, sigma), with the same denoiser, to rounding."""
    times = samplers.ode_times(12, SD)
    flow, sigma = TrigFlow(SD), SD * times.tan()
    x = NOISE / times[0].cos()

    def slope(x, sigma):
        t = (sigma / SD).atan()
        x_t = x * t.cos()
        denoised = flow.to_data(x_t, EXACT.teacher(x_t / SD, t), t)
        return (x - denoised) / sigma

    for now, then in zip(sigma[:-1], sigma[1:], strict=True):
        d = slope(x, now)
        ahead = x + (then - now) * d
        if then > 0:
            ahead = x + (then - now) * (d + slope(ahead, then)) / 2
        x = ahead
    torch.testing.assert_close(
        samplers.heun(EXACT.teacher, NOISE, times, SD)[-1], x, rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_perfect_student_draws_the_data_distribution(steps):
    generator = torch.Generator().manual_seed(1)
    noise = SD * torch.randn(100_000, 1, dtype=torch.float64, generator=generator)
    times = samplers.consistency_times(steps, SD)

    def fresh(x):
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    x = samplers.consistency(EXACT.student, noise, times, SD, fresh=fresh)
    assert x.mean().item() == pytest.approx(EXACT.mean, abs=0.005)
    assert x.std().item() == pytest.approx(EXACT.std, rel=0.02)


def test_one_consistency_step_is_the_flow_map():
    times = samplers.consistency_times(1, SD)
    x = samplers.consistency(EXACT.student, NOISE, times, SD, fresh=torch.randn_like)
    torch.testing.assert_close(x, EXACT.flow_map(NOISE, times[0], torch.zeros(())))


def test_the_seed_fixes_the_fresh_noise():
    times = samplers.consistency_times(2, SD)
    draws = [
        samplers.consistency(EXACT.student, NOISE, times, SD, fresh=sampling.fresh_noise(seed, 0))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("sampler", "nfe"), [(samplers.ddim, 32), (samplers.heun, 63), (samplers.dpm_solver, 32)]
)
def test_nfe_of_32_steps(sampler, nfe):
    counted = samplers.CountedModel(EXACT.teacher)
    sampler(counted, NOISE, samplers.ode_times(32, SD), SD)
    assert counted.nfe(len(NOISE)) == nfe


def test_guidance_counts_twice_and_extrapolates():
    null = partial(null_condition, {"label": Label(2)})
    shift = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)

    def model(x, t, condition):
        return x + shift[condition["label"], None]

    counted = samplers.CountedModel(model)
    condition = {"label": torch.tensor([0, 1])}
    x, t = NOISE[:2], torch.ones(2, dtype=torch.float64)
    F = Guided(counted, 3.0, null)(x, t, condition)
    torch.testing.assert_close(F, x + torch.tensor([[3.0], [6.0]], dtype=torch.float64))
    assert counted.nfe(2) == 2
    F = Guided(counted, 1.0, null)(x, t, condition)
    torch.testing.assert_close(F, model(x, t, condition))
    assert counted.nfe(2) == 3


def test_ode_times_are_edms():
    times = samplers.ode_times(5, SD)
    sigma = (SD * times.tan()).tolist()
    expected = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    assert sigma == pytest.approx([*expected, 0.0])


def test_every_seed_has_its_own_noise():
    """Also where seeds differ in what a CPU's generator does not look at."""
    seeds = [0, 1, 255, 256, 512, 1 << 24, 1 << 40, 1 << 70, -1, -256]

    def drawn(seed):
        fresh = sampling.fresh_noise(seed, 0)(torch.empty(4))
        return torch.cat([sampling.seeded_noise((4,), 2, seed, SD).flatten(), fresh]).tolist()

    noise = [drawn(seed) for seed in seeds]
    assert noise == [drawn(seed) for seed in seeds]
    numbers = sum(noise, [])
    assert len(set(numbers)) == len(numbers)


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="steps"):
        samplers.ode_times(0, SD)
    with pytest.raises(ValueError, match="steps"):
        samplers.consistency_times(0, SD)


@pytest.mark.parametrize(("name", "steps", "off"), [("dpm", 200, 2e-3), ("ddim", 2000, 5e-3)])
def test_the_path_of_a_solver_follows_the_exact_flow(name, steps, off):
    times = samplers.ode_times(steps, SD)
    path = samplers.PATHS[name](EXACT.teacher, NOISE, times, SD)
    assert len(path) == len(times) and path[0] is NOISE
    for x, t in zip(path, times, strict=True):
        torch.testing.assert_close(x, EXACT.flow_map(NOISE, times[0], t), rtol=0, atol=off)
