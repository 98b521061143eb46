"""The path, its conversions and the proposal, against closed forms in float64."""

import math

import pytest
import torch
from gaussian import Gaussian

from scm_core import TrigFlow
from scm_core.method import conversions as convert
from scm_core.method.proposal import LogNormalProposal

SD = 0.5
FLOW = TrigFlow(SD)


@pytest.fixture
def path():
    generator = torch.Generator().manual_seed(0)
    x0, e = torch.randn(2, 6, 3, 4, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.01, 0.3, 0.8, 1.2, 1.5, 1.56], dtype=torch.float64)
    x0, noise = SD * x0, SD * e
    return x0, noise, t, FLOW.interpolate(x0, noise, t), FLOW.velocity(x0, noise, t) / SD


def test_the_true_velocity_recovers_data_and_noise(path):
    x0, noise, t, x_t, F = path
    torch.testing.assert_close(FLOW.to_data(x_t, F, t), x0)
    torch.testing.assert_close(FLOW.to_noise(x_t, F, t), noise)


def test_velocity_is_the_time_derivative(path):
    x0, noise, t, _, F = path
    h = 1e-5
    slope = (FLOW.interpolate(x0, noise, t + h) - FLOW.interpolate(x0, noise, t - h)) / (2 * h)
    torch.testing.assert_close(slope, SD * F, rtol=1e-8, atol=1e-9)


def test_boundaries(path):
    x0, noise, t, x_t, F = path
    zero, end = torch.zeros_like(t), torch.full_like(t, math.pi / 2)
    torch.testing.assert_close(FLOW.to_data(x_t, F, zero), x_t)
    torch.testing.assert_close(FLOW.to_data(x_t, F, end), -SD * F)


def test_a_step_is_exact_for_a_dirac(path):
    x0, noise, t, x_t, F = path
    s = t * 0.7
    torch.testing.assert_close(FLOW.step(x_t, F, t, s), FLOW.interpolate(x0, noise, s))


def test_scalar_times_broadcast(path):
    x0, noise, *_ = path
    t = torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(
        FLOW.interpolate(x0, noise, t), FLOW.interpolate(x0, noise, t.expand(6))
    )


def test_sampling_starts_at_edms_largest_noise():
    assert SD * math.tan(FLOW.t_max) == pytest.approx(80.0)


def test_gaussian_velocity_and_flow_map_agree():
    exact = Gaussian(0.3, 0.2, SD)
    x = torch.randn(5, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 1.5, 5, dtype=torch.float64)
    h = 1e-5
    forward, back = exact.flow_map(x, t, t + h), exact.flow_map(x, t, t - h)
    torch.testing.assert_close(
        (forward - back) / (2 * h), exact.velocity(x, t), rtol=1e-8, atol=1e-9
    )


def test_unit_ratio_gaussian_student_is_minus_tan_half_t():
    exact = Gaussian(0.0, SD, SD)
    x = torch.randn(5, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 1.5, 5, dtype=torch.float64)
    torch.testing.assert_close(exact.student(x, t), -(t / 2).tan()[:, None] * x)


def test_edm_is_the_same_path(path):
    x0, noise, t, x_t, F = path
    x, sigma = convert.trigflow_to_edm(x_t, t, SD)
    torch.testing.assert_close(x, x0 + sigma[:, None, None] * noise / SD)
    back, t_back = convert.edm_to_trigflow(x, sigma, SD)
    torch.testing.assert_close(back, x_t)
    torch.testing.assert_close(t_back, t)
    # EDM's network output (D - c_skip x) / c_out is exactly -F.
    variance = (sigma**2 + SD**2)[:, None, None]
    c_out = sigma[:, None, None] * SD / variance.sqrt()
    torch.testing.assert_close((x0 - SD**2 / variance * x) / c_out, -F)
    torch.testing.assert_close(convert.edm_noise_condition(t, SD), sigma.log() / 4)


def test_vp_is_the_same_path(path):
    x0, noise, *_ = path
    e = noise / SD
    alpha_bar = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    a, b = alpha_bar.sqrt()[:, None, None], (1 - alpha_bar).sqrt()[:, None, None]
    x_t, t = convert.vp_to_trigflow(a * x0 + b * e, alpha_bar, SD)
    torch.testing.assert_close(x_t, FLOW.interpolate(x0, noise, t))
    F = FLOW.velocity(x0, noise, t) / SD
    torch.testing.assert_close(convert.vp_noise_to_velocity(x_t, e, t, SD), F)
    torch.testing.assert_close(convert.velocity_from_data(x_t, x0, t, SD), F)
    # With sigma_data = 1 the time is arccos(sqrt(alpha_bar)) and F is v-prediction, a e - b x0.
    one = TrigFlow(1.0)
    x_one, t_one = convert.vp_to_trigflow(a * x0 + b * e, alpha_bar, 1.0)
    torch.testing.assert_close(t_one.cos(), alpha_bar.sqrt())
    torch.testing.assert_close(x_one, one.interpolate(x0, e, t_one))
    torch.testing.assert_close(one.velocity(x0, e, t_one), a * e - b * x0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_rectified_flow_is_the_same_path(path, sigma_data):
    x0, noise, *_ = path
    e = noise / SD
    flow = TrigFlow(sigma_data)
    u = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    x = (1 - u)[:, None, None] * x0 + u[:, None, None] * e
    x_t, t = convert.flow_to_trigflow(x, u, sigma_data)
    torch.testing.assert_close(x_t, flow.interpolate(x0, sigma_data * e, t))
    back, u_back = convert.trigflow_to_flow(x_t, t, sigma_data)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(u_back, u)
    F = convert.flow_velocity_to_velocity(x, e - x0, u, sigma_data)
    torch.testing.assert_close(sigma_data * F, flow.velocity(x0, sigma_data * e, t))


def test_proposal_is_edm_log_normal():
    generator = torch.Generator().manual_seed(1)
    t = LogNormalProposal(-0.8, 1.6, SD).sample(200_000, generator=generator)
    assert t.dtype == torch.float32 and t.min() > 0 and t.max() < math.pi / 2
    tau = (SD * t.double().tan()).log()
    assert tau.mean().item() == pytest.approx(-0.8, abs=0.02)
    assert tau.std().item() == pytest.approx(1.6, abs=0.02)
