"""The losses against the closed forms of Gaussian data, in float64."""

import pytest
import torch
from gaussian import Gaussian

from scm_core import TrigFlow
from scm_core.method import tangent as consistency
from scm_core.method.objectives.consistency import consistency_loss
from scm_core.method.objectives.diffusion import diffusion_loss
from scm_core.method.objectives.distribution_matching import score_loss
from scm_core.method.objectives.endpoint import endpoint_loss, jittered_times
from scm_core.method.samplers import ode_times
from scm_core.method.trigflow import expand_time

SD = 0.5
T = torch.linspace(0.05, 1.55, 7, dtype=torch.float64)


def exact_jvp(function, x_t, dxdt, t):
    """F and `cos t sin t dF/dt` along the given direction, by torch's own forward mode."""
    cs = t.cos() * t.sin()
    return torch.func.jvp(function, (x_t / SD, t), (expand_time(cs, x_t) * dxdt / SD, cs))


def sample(n=7, d=5, seed=0):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_perfect_student_has_no_tangent():
    exact = Gaussian(0.3, 0.2, SD)
    x_t = sample()
    dxdt = SD * exact.teacher(x_t / SD, T)
    F, dF = exact_jvp(exact.student, x_t, dxdt, T)
    g = consistency.tangent(F, dF, x_t, dxdt, T, SD)
    torch.testing.assert_close(g, torch.zeros_like(g), atol=1e-12, rtol=0)


def wobbly(x, t):
    """Any smooth network."""
    return torch.sin(2 * x) * t.cos()[:, None] + 0.3 * x**2 * t[:, None]


def test_tangent_is_cos_t_times_the_derivative_of_f():
    x_t, dxdt = sample(), sample(seed=1)
    F, dF = exact_jvp(wobbly, x_t, dxdt, T)
    g = consistency.tangent(F, dF, x_t, dxdt, T, SD)

    def f(x_t, t):
        return TrigFlow(SD).to_data(x_t, wobbly(x_t / SD, t), t)

    _, df = torch.func.jvp(f, (x_t, T), (dxdt, torch.ones_like(T)))
    torch.testing.assert_close(g, T.cos()[:, None] * df)


def test_tangent_matches_differences_along_the_path_to_second_order():
    flow, x0, z = TrigFlow(SD), sample(), SD * sample(seed=1)
    F, dF = exact_jvp(wobbly, flow.interpolate(x0, z, T), flow.velocity(x0, z, T), T)

    def along(u):
        return wobbly(flow.interpolate(x0, z, u) / SD, u)

    cs = (T.cos() * T.sin())[:, None]
    errors = []
    for h in (1e-2, 5e-3):
        difference = (along(T + h) - along(T - h)) / (2 * h)
        errors.append((dF - cs * difference).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_teacher_weights_without_warmup_give_no_tangent():
    exact = Gaussian(0.3, 0.2, SD)
    x_t = sample()
    dxdt = SD * exact.teacher(x_t / SD, T)
    F, dF = exact_jvp(exact.teacher, x_t, dxdt, T)
    assert consistency.tangent(F, dF, x_t, dxdt, T, SD, warmup=0.0).abs().max() == 0


def test_no_signal_at_the_end_of_time():
    end = torch.full((7,), torch.pi / 2, dtype=torch.float64)
    F, dxdt, x_t = sample(), sample(seed=1), sample(seed=2)
    _, dF = exact_jvp(wobbly, x_t, dxdt, end)
    g = consistency.tangent(F, dF, x_t, dxdt, end, SD)
    assert g.abs().max() < 1e-15


def test_normalisation_bounds_the_loss_below_one():
    g = 100 * sample(d=300)
    norm = g.norm(dim=1)
    unit = consistency.normalise(g, c=0.1)
    torch.testing.assert_close(unit.norm(dim=1), norm / (norm + 0.1))
    F = sample(d=300).requires_grad_()
    loss = consistency_loss(F, unit, torch.zeros(7, dtype=torch.float64)) * 300
    torch.testing.assert_close(loss, (norm / (norm + 0.1)) ** 2)
    assert (loss < 1).all()


def test_rms_means_the_same_for_every_size():
    g = sample(d=10)
    small = consistency.normalise(g, norm="rms")
    large = consistency.normalise(g.repeat(1, 50), norm="rms")
    torch.testing.assert_close(small.repeat(1, 50), large)


def test_clamping_bounds_every_element_and_leaves_the_others():
    g = torch.tensor([[-3.0, -0.5, 0.0, 0.7], [0.1, 0.2, 1.5, 1.0]])
    expected = torch.tensor([[-1.0, -0.5, 0.0, 0.7], [0.1, 0.2, 1.0, 1.0]])
    assert torch.equal(consistency.normalise(g, 1.0, "clamp"), expected)


def test_what_is_masked_counts_as_zero_in_the_norm():
    """Masked elements take no part in l2; the mean of rms is over all elements, of which they are,
    so that rms stays l2 / sqrt(D) and both give one direction."""
    g, x0 = torch.tensor([[3.0, 4.0, 100.0, -100.0]]), torch.tensor([[0.0, 0.0, 2.0, -2.0]])
    masked = consistency.within(g, x0, (torch.tensor(-1.0), torch.tensor(1.0)))
    for norm, size in (("l2", 5.0), ("rms", 2.5)):
        expected = torch.tensor([[3.0, 4.0, 0.0, 0.0]]) / (size + 0.1)
        torch.testing.assert_close(consistency.normalise(masked, 0.1, norm), expected)


def test_an_unknown_norm_is_named():
    with pytest.raises(ValueError, match="l1"):
        consistency.normalise(sample(), norm="l1")


def test_gradient_is_minus_the_weighted_tangent():
    F, g = sample().requires_grad_(), sample(seed=1)
    weight = sample(d=1)[:, 0]
    consistency_loss(F, g, weight).sum().backward()
    torch.testing.assert_close(F.grad, -2 * weight.exp()[:, None] * g / 5)


def test_warmup_is_linear_then_one():
    assert [consistency.warmup_ratio(s, 10) for s in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    assert consistency.warmup_ratio(0, 0) == 1


def test_diffusion_loss_reaches_its_floor():
    """A perfect teacher's error per element is sd^2 S^2 / V(t), whatever the network."""
    exact, flow, n = Gaussian(0.3, 0.2, SD), TrigFlow(SD), 400_000
    x0, z = exact.mean + exact.std * sample(n, 1), SD * sample(n, 1, seed=1)
    for t in (0.2, 0.8, 1.4):
        times = torch.full((n,), t, dtype=torch.float64)
        x_t = flow.interpolate(x0, z, times)
        loss = diffusion_loss(
            exact.teacher(x_t / SD, times), flow.velocity(x0, z, times), torch.zeros(n), SD
        )
        floor = SD**2 * exact.std**2 / exact.variance(times[0])
        assert loss.mean().item() == pytest.approx(floor.item(), rel=0.01)


def test_learned_weight_is_best_at_minus_log_loss():
    error = torch.tensor([0.25])
    weight = torch.zeros(1, requires_grad=True)
    F = torch.zeros(1, 4)
    velocity = error.sqrt().expand(1, 4)
    best = weight.detach() - error.log()
    (slope,) = torch.autograd.grad(diffusion_loss(F, velocity, weight + best, SD).sum(), weight)
    assert slope.abs().item() < 1e-6


def test_a_perfect_student_has_no_endpoint_error():
    exact = Gaussian(0.3, 0.2, SD)
    x_t = sample()
    end = exact.flow_map(x_t, T, torch.zeros_like(T))
    zero = torch.zeros_like(T)
    F = exact.student(x_t / SD, T)
    assert endpoint_loss(F, x_t, end, T, zero, SD).abs().max() < 1e-20
    off = endpoint_loss(F + 0.1, x_t, end, T, zero, SD)
    torch.testing.assert_close(off, torch.full_like(T, (0.1**2 + 0.01**2) ** 0.5 - 0.01))


def test_jittered_times_keep_the_ends_and_cover_what_lies_between():
    times = ode_times(6, SD)
    drawn = torch.stack([jittered_times(times, u) for u in torch.linspace(0.05, 1, 20).tolist()])
    assert (drawn[:, 0] == times[0]).all() and (drawn[:, -1] == 0).all()
    assert (drawn.diff(dim=1) < 0).all()
    assert (drawn[:, 1:-1] <= times[:-2]).all() and (drawn[:, 1:-1] >= times[1:-1]).all()
    gaps = drawn[:, 1:-1].flatten().sort().values.diff()
    assert gaps.max() < 0.1 * times.diff().abs().max()


def test_score_loss_has_the_gradient_of_the_score_gap():
    """`(D_fake - D_teacher) / (D mean|x0 - D_teacher|)`, and nothing for the two denoisers."""
    x0, fake, teacher = (sample(seed=seed).requires_grad_() for seed in range(3))
    score_loss(x0, fake, teacher).sum().backward()
    scale = (x0 - teacher).abs().mean(1, keepdim=True)
    torch.testing.assert_close(x0.grad, ((fake - teacher) / scale / x0.shape[1]).detach())
    assert fake.grad is None and teacher.grad is None


@pytest.mark.parametrize("mean,std", [(0.3, 0.2), (-0.1, 0.2), (0.1, 0.05), (0.1, 0.4)])
def test_score_loss_moves_a_wrong_distribution_to_the_right_one(mean, std):
    """Gradient descent on samples, their exact denoiser as the fake one: mean and std get there."""
    right, flow, n, d = Gaussian(0.1, 0.2, SD), TrigFlow(SD), 200, 32
    x0 = mean + std * sample(n, d)
    for step in range(100):
        drawn = Gaussian(x0.mean().item(), x0.std().item(), SD)
        t = torch.full((n,), 0.5, dtype=torch.float64)
        x_t = flow.interpolate(x0, SD * sample(n, d, seed=step), t)
        fake, teacher = (flow.to_data(x_t, g.teacher(x_t / SD, t), t) for g in (drawn, right))
        x0 = x0.requires_grad_()
        (gradient,) = torch.autograd.grad(score_loss(x0, fake, teacher).sum(), x0)
        x0 = (x0 - 0.03 * d * gradient).detach()
    assert x0.mean().item() == pytest.approx(right.mean, abs=0.03)
    assert x0.std().item() == pytest.approx(right.std, abs=0.04)


def test_an_end_beyond_what_decoding_clips_to_is_no_error():
    x_t, zero = sample(), torch.zeros_like(T)
    low, high = torch.tensor(-0.2), torch.tensor(0.2)

    def loss(end, reached):
        F = (T.cos()[:, None] * x_t - reached) / (SD * T.sin()[:, None])
        end = torch.full_like(x_t, end)
        return endpoint_loss(F, x_t, end, T, zero, SD, (low, high))

    assert loss(-0.19, -0.2).min() > 0
    assert loss(0.2, 0.1).min() > 0
    for beyond in (-0.2, -0.25, -3.0):
        assert loss(beyond, -0.5).abs().max() < 1e-9


def test_no_tangent_where_a_sample_lies_beyond_what_decoding_clips_to():
    g = torch.arange(1.0, 7).reshape(2, 3)
    x0 = torch.tensor([[-0.21, -0.2, 0.0], [0.2, 0.21, 9.0]])
    low, high = torch.tensor(-0.2), torch.tensor(0.2, dtype=torch.float64)
    expected = torch.tensor([[0.0, 2, 3], [4, 0, 0]])
    assert torch.equal(consistency.within(g, x0, (low, high)), expected)
    assert g.min() == 1  # the argument is left as it was
    assert torch.equal(consistency.within(g, x0, None), g)


def test_bounds_may_differ_by_channel():
    g, x0 = torch.ones(4, 2, 3), torch.full((4, 2, 3), 0.5)
    low, high = torch.tensor([[0.0], [0.6]]), torch.tensor([[1.0], [1.0]])
    kept = consistency.within(g, x0, (low, high))
    assert (kept[:, 0] == 1).all() and (kept[:, 1] == 0).all()
