"""What Dual refuses because its tangent would be wrong, and how a rule lifts a refusal."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint

from scm_core.dual import Dual, DualError, jvp, rule


@torch.library.custom_op("scm_core_test::triple", mutates_args=())
def triple(x: torch.Tensor) -> torch.Tensor:
    return 3 * x


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.transpose_(0, 1), "transpose_ writes in place or changes a tensor"),
        (lambda x: x.normal_(), "normal_ writes in place or changes a tensor"),
        (lambda x: torch.add(x, 1, out=torch.empty(4, 3)), "add writes in place"),
        (nn.BatchNorm1d(3), "BatchNorm in train mode"),
        (Square.apply, "inside a torch.autograd.Function"),
        (lambda x: checkpoint(torch.sin, x, use_reentrant=True), "use_reentrant=False"),
        (lambda x: triple(x), "custom operator"),
        (lambda x: x * x.sum().item(), "item would lose the tangent"),
        (lambda x: x * float(x.sum()), "would lose the tangent"),
        (lambda x: x if x.sum() else -x, "truth value"),
        (lambda x: torch.ones(3), "does not depend on its inputs"),
        (lambda x: flex_attention(*[x.view(1, 1, 4, 3)] * 3), "flex_attention compiles itself"),
        (lambda x: F.grid_sample(x[None, None], torch.zeros(1, 2, 2, 2)), "grid_sample"),
    ],
)
def test_refused(function, message):
    with pytest.raises(DualError, match=message):
        jvp(function, (torch.rand(4, 3),), (torch.rand(4, 3),))


def test_batch_norm_passes_in_eval_mode():
    norm = nn.BatchNorm1d(3).eval()
    assert torch.allclose(jvp(norm, (torch.rand(4, 3),), (torch.ones(4, 3),))[1], norm.weight, 1e-4)


def test_a_rule_makes_a_custom_operator_pass():
    @torch.library.custom_op("scm_core_test::quadruple", mutates_args=())
    def quadruple(x: torch.Tensor) -> torch.Tensor:
        return 4 * x

    @rule(quadruple)
    def quadruple_rule(x):
        with torch.no_grad():
            return Dual(4 * x.primal, 4 * x.tangent)

    x = torch.rand(3)
    for function in (quadruple, torch.ops.scm_core_test.quadruple):
        torch.testing.assert_close(jvp(function, (x,), (x,)), (4 * x, 4 * x))
