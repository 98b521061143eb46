"""verify(): what it passes, what it finds and what it says."""

import copy
import math

import pytest
import torch
from dual_networks import Ignoring, Network, batch
from torch import nn

from scm_core.contract.spec import Batch
from scm_core.dual import Dual, verify
from scm_core.dual.core import RULES


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def test_verify_passes_a_right_network(network):
    before = copy.deepcopy(network.state_dict())
    report = verify(network, batch())
    assert report.ok, report
    assert report.difference < 1e-6 and report.jvp < 1e-12 and not report.fallbacks
    assert "ok" in str(report) and "float64" in str(report)
    torch.testing.assert_close(network.state_dict(), before)


def test_verify_sees_through_a_fresh_output_layer_and_dropout():
    network = Network(dropout=0.3)
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    report = verify(network, batch())
    assert report.ok and 0 < report.difference < 1e-6, report


def test_verify_names_operations_without_a_rule():
    report = verify(Ignoring(nn.Hardswish()), batch())
    assert report.ok and report.fallbacks == {"hardswish": 1}
    assert "hardswish x1" in str(report)


@torch.library.custom_op("scm_core_test::sine", mutates_args=())
def sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


sine.register_autograd(
    lambda ctx, gradient: gradient * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Sine(nn.Module):
    def forward(self, x):
        return sine(x)


def test_verify_finds_a_wrong_tangent(monkeypatch):
    def wrong(x):
        return Dual(sine(x.primal), x.tangent)

    monkeypatch.setitem(RULES, sine._opoverload, wrong)
    report = verify(Ignoring(Sine()), batch())
    assert not report.ok and report.difference > 1e-2 and report.forward == report.gradient == 0
    assert "FAILED" in str(report)


def test_verify_finds_a_cut_graph(monkeypatch):
    def cut(x):
        return Dual(sine(x.primal).detach(), x.tangent * x.primal.detach().cos())

    monkeypatch.setitem(RULES, sine._opoverload, cut)
    report = verify(Ignoring(Sine()), batch())
    assert not report.ok and report.gradient == math.inf and report.difference < 1e-6


class Attending(nn.Module):
    """Two attentions, of which the second has a key's bias of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.MultiheadAttention(8, 2, batch_first=True)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x, _ = self.first(x, x, x, need_weights=False)
        return nn.functional.scaled_dot_product_attention(
            *(project(x)[:, None] for project in (self.query, self.key, self.value))
        )[:, 0]


def test_rounding_in_a_gradient_that_is_zero_is_no_error():
    report = verify(Ignoring(Attending()), Batch(torch.randn(4, 6, 8), {}))
    assert report.forward > 0 and report.ok, report


def test_verify_finds_a_gradient_that_is_wrong_by_a_thousandth(monkeypatch):
    def wrong(x):
        value = sine(x.primal) + 1e-3 * (x.primal - x.primal.detach())
        return Dual(value, x.tangent * x.primal.detach().cos())

    monkeypatch.setitem(RULES, sine._opoverload, wrong)
    report = verify(Ignoring(Sine()), batch())
    assert not report.ok and report.gradient > 1e-4 and report.difference < 1e-6


class Folding(nn.Module):
    """A tent map again and again: thousands of kinks, and exact slopes between them."""

    def forward(self, x):
        for _ in range(12):
            x = 1 - (2 * x - 1).abs()
        return x


def test_an_exact_jvp_that_agrees_outweighs_a_difference_across_a_kink():
    report = verify(Ignoring(Folding()), batch())
    assert report.difference > 1e-4 and report.ok, report
    assert "across a kink: the exact jvp agrees" in str(report)


class Detaching(nn.Module):
    def forward(self, x):
        return x * x.detach().square().mean(-1, keepdim=True).sqrt()


def test_a_jvp_that_takes_the_detached_for_constant_is_no_reference():
    report = verify(Ignoring(Detaching()), batch())
    assert report.ok and report.jvp is None and report.difference < 1e-6, report


def test_verify_reports_a_refusal_instead_of_raising():
    report = verify(Ignoring(nn.BatchNorm2d(2)), batch())
    assert not report.ok and "BatchNorm" in str(report)


def test_verify_falls_back_to_float32_for_a_network_that_casts():
    class Casting(Network):
        def embed(self, t):
            return super().embed(t.float())

    report = verify(Casting(), batch())
    assert report.ok and report.dtype == torch.float32, report


@pytest.mark.parametrize(
    ("network", "batch"),
    [
        (torch.sin, Batch(torch.ones(2, 1), {})),
        (nn.Identity(), torch.ones(2, 1)),
        (nn.Identity(), Batch(torch.ones(2, 1, dtype=torch.long), {})),
        (nn.Identity(), Batch(torch.ones(2, 1), None)),
    ],
)
def test_verify_rejects_other_arguments(network, batch):
    with pytest.raises(ValueError, match="verify"):
        verify(network, batch)


def test_transformer_layer_of_torch():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    report = verify(Ignoring(layer), Batch(torch.rand(2, 5, 8), {}))
    assert report.ok and not report.fallbacks, report
