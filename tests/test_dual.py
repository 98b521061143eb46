"""Dual through whole networks: what it keeps, what it counts, what it refuses."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from scm_core.dual import Dual, DualError, fallbacks, jvp, rule, verify
from scm_core.dual import attention as attention_rules
from scm_core.dual.core import RULES
from scm_core.modality import Batch


class Network(nn.Module):
    """A small convolutional attention network `F(x, t, condition)` in ordinary PyTorch."""

    def __init__(
        self, channels: int = 16, dropout: float = 0.0, checkpointed: bool = False
    ) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.time = nn.Sequential(nn.Linear(4, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.label = nn.Embedding(3, channels)
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(channels, 2, 3, padding=1)

    def embed(self, t):
        with torch.autocast(t.device.type, enabled=False):
            angle = t[:, None] * torch.tensor([1.0, 0.5], dtype=t.dtype)
            return self.time(torch.cat([angle.sin(), angle.cos()], dim=1))

    def block(self, x, embedding):
        tokens = F.silu(self.norm(x) + embedding[:, :, None, None]).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + self.dropout(mixed).transpose(1, 2).unflatten(2, x.shape[2:])

    def forward(self, x, t, condition):
        embedding = self.embed(t) + self.label(condition["label"])
        x = self.stem(x)
        if self.checkpointed:
            x = checkpoint(self.block, x, embedding, use_reentrant=False)
        else:
            x = self.block(x, embedding)
        return self.head(x)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


@pytest.fixture
def arguments():
    """primals, tangents, condition"""
    generator = torch.Generator().manual_seed(1)
    x, dx = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    t, dt = torch.tensor([0.2, 0.8, 1.5]), torch.tensor([1.0, 0.5, -0.3])
    return (x, t), (dx, dt), {"label": torch.tensor([0, 2, 1])}


def gradients(network: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


def test_value_gradient_and_tangent_of_a_network(network, arguments):
    primals, tangents, condition = arguments
    with fallbacks() as slow:
        out, tangent = jvp(network, primals, tangents, condition=condition)
    plain = network(*primals, condition)
    h = 1e-2
    moved = [
        network(*(x + s * h * dx for x, dx in zip(primals, tangents, strict=True)), condition)
        for s in (1, -1)
    ]
    assert not slow
    assert out.requires_grad and not tangent.requires_grad
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
    torch.testing.assert_close(tangent, (moved[0] - moved[1]) / (2 * h), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        gradients(network, out.square().mean()), gradients(network, plain.square().mean())
    )


def test_outputs_keep_their_structure(arguments):
    (x, t), (dx, dt), _ = arguments
    out, tangent = jvp(lambda x, t: {"x": 2 * x, "pair": (t, -t)}, (x, t), (dx, dt))
    torch.testing.assert_close(out, {"x": 2 * x, "pair": (t, -t)})
    torch.testing.assert_close(tangent, {"x": 2 * dx, "pair": (dt, -dt)})


def test_dual_is_a_pytree_and_answers_like_a_tensor():
    x = Dual(torch.ones(2, 3), torch.zeros(2, 3))
    leaves, structure = pytree.tree_flatten({"x": x})
    assert [id(leaf) for leaf in leaves] == [id(x.primal), id(x.tangent)]
    assert pytree.tree_unflatten(leaves, structure)["x"].tangent is x.tangent
    assert (x.shape, x.dtype, x.ndim, len(x)) == ((2, 3), torch.float32, 2, 2)
    assert (x.size(1), x.numel(), x.dim(), x.is_floating_point()) == (3, 6, 2, True)
    assert x.mT.shape == (3, 2)


def test_values_without_a_derivative_are_plain():
    x = Dual(torch.tensor([1.0, 3.0, 2.0]), torch.ones(3))
    for value in (x > 1, x.argmax(), torch.zeros_like(x), x.long(), x.isnan(), x.round()):
        assert isinstance(value, torch.Tensor)
    values, indices = x.max(dim=0)
    assert values.tangent == 1 and indices == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept(layout):
    x, dx = (torch.randn(2, 8, 5, 5).to(memory_format=layout) for _ in range(2))
    norm = nn.GroupNorm(2, 8)
    out, tangent = jvp(lambda x: F.silu(norm(x)) * 2 + x, (x,), (dx,))
    assert out.is_contiguous(memory_format=layout)
    assert tangent.is_contiguous(memory_format=layout)


def test_dropout_has_one_mask_for_both():
    torch.manual_seed(0)
    out, tangent = jvp(lambda x: F.dropout(x, 0.5), (torch.ones(100),), (torch.full((100,), 3.0),))
    torch.manual_seed(0)
    torch.testing.assert_close(out, F.dropout(torch.ones(100), 0.5))
    torch.testing.assert_close(tangent, 3 * out)
    assert 0 < out.count_nonzero() < 100


def test_attention_dropout_has_one_mask_for_both():
    def attend(v):
        torch.manual_seed(0)
        return F.scaled_dot_product_attention(
            torch.ones(1, 4, 2), torch.ones(1, 4, 2), v, None, 0.5
        )

    v = torch.randn(1, 4, 2)
    out, tangent = jvp(attend, (v,), (v,))  # linear in v
    torch.testing.assert_close(out, attend(v))
    torch.testing.assert_close(tangent, out)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_does_not_depend_on_its_blocks(monkeypatch, causal):
    generator = torch.Generator().manual_seed(0)
    q, k, v, dq, dk, dv = (
        torch.randn(3, 2, 20, 4, generator=generator, dtype=torch.float64) for _ in range(6)
    )

    def tangent(block, rows):
        monkeypatch.setitem(attention_rules.BLOCK, "cpu", block)
        monkeypatch.setattr(attention_rules, "_ROWS", rows)
        attend = lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=causal)  # noqa: E731
        return jvp(attend, (q, k, v), (dq, dk, dv))[1]

    whole = tangent(1 << 20, 64)
    for block, rows in ((1, 1), (100, 3), (300, 7), (1600, 64)):
        torch.testing.assert_close(tangent(block, rows), whole, rtol=1e-12, atol=1e-13)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that an operation returned."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.size = max(self.size, leaf.numel())
        return out


def test_attention_memory_is_linear():
    def largest(tokens):
        qkv = [Dual(torch.randn(1, 1, tokens, 8), torch.randn(1, 1, tokens, 8)) for _ in range(3)]
        with LargestTensor() as mode:
            F.scaled_dot_product_attention(*qkv)
        return mode.size

    assert largest(8192) <= 2 * largest(4096) < 4096**2


def test_fallback_is_right_and_counted(arguments):
    (x, _), (dx, _), _ = arguments

    def network(x):
        return F.hardswish(x).cumprod(-1) + F.hardswish(x).logsumexp(1, keepdim=True)

    with fallbacks() as slow:
        out, tangent = jvp(network, (x.double(),), (dx.double(),))
    assert dict(slow) == {"hardswish": 2, "cumprod": 1, "logsumexp": 1}
    expected = torch.func.jvp(network, (x.double(),), (dx.double(),))
    torch.testing.assert_close((out, tangent), expected)


def test_fallback_draws_the_same_random_numbers(arguments):
    (x, _), _, _ = arguments
    torch.manual_seed(0)
    out, tangent = jvp(lambda x: F.rrelu(x, training=True), (x,), (x,))  # positively homogeneous
    torch.testing.assert_close(tangent, out)
    torch.manual_seed(0)
    torch.testing.assert_close(out, F.rrelu(x, training=True))


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


def add_in_place(x):
    x += 1
    return x


def write_row(x):
    x[0] = 0.0
    return x


def write_buffer(x):
    buffer = torch.zeros(4, 3)
    buffer[:] = x
    return buffer


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (add_in_place, "__iadd__ writes in place"),
        (write_row, "__setitem__ writes in place"),
        (write_buffer, "__setitem__ writes in place"),
        (lambda x: x.mul_(2), "mul_ writes in place"),
        (lambda x: torch.zeros(4, 3).add_(x), "add_ writes in place"),
        (nn.ReLU(inplace=True), "relu writes in place"),
        (nn.BatchNorm1d(3), "BatchNorm in train mode"),
        (Square.apply, "inside a torch.autograd.Function"),
        (lambda x: checkpoint(torch.sin, x, use_reentrant=True), "use_reentrant=False"),
        (lambda x: triple(x), "custom operator"),
        (lambda x: x * x.sum().item(), "item would lose the tangent"),
        (lambda x: x * float(x.sum()), "would lose the tangent"),
        (lambda x: x if x.sum() else -x, "truth value"),
        (lambda x: torch.ones(3), "does not depend on its inputs"),
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


@pytest.mark.parametrize(
    ("primals", "tangents"),
    [
        ((torch.ones(2),), ()),
        ((torch.ones(2),), (torch.ones(3),)),
        ((torch.ones(2, dtype=torch.long),), (torch.ones(2),)),
    ],
)
def test_jvp_rejects_tangents_that_do_not_match(primals, tangents):
    with pytest.raises(ValueError, match="jvp"):
        jvp(torch.sin, primals, tangents)


def test_bfloat16_autocast_reaches_both_and_spares_the_time_embedding(network, arguments):
    primals, tangents, condition = arguments
    dtypes = {}
    for name in ("time", "stem"):
        network.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: dtypes.update(
                {name: (out.primal.dtype, out.tangent.dtype)}
            )
        )
    exact, exact_tangent = jvp(network, primals, tangents, condition=condition)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, tangent = jvp(network, primals, tangents, condition=condition)
    assert dtypes == {"time": (torch.float32,) * 2, "stem": (torch.bfloat16,) * 2}
    assert out.dtype == tangent.dtype == torch.bfloat16
    for value, reference in ((out, exact), (tangent, exact_tangent)):
        assert (value - reference).norm() < 0.03 * reference.norm()
    assert all(g.isfinite().all() for g in gradients(network, out.float().square().mean()))


def test_activation_checkpointing(network, arguments):
    primals, tangents, condition = arguments
    checkpointed = copy.deepcopy(network)
    checkpointed.checkpointed = True
    results = []
    for net in (network, checkpointed):
        out, tangent = jvp(net, primals, tangents, condition=condition)
        results.append((out, tangent, gradients(net, out.square().mean())))
    torch.testing.assert_close(*results)


def test_gradients_accumulate(network, arguments):
    primals, tangents, condition = arguments
    out, _ = jvp(network, primals, tangents, condition=condition)
    whole = gradients(network, out.square().sum())
    for i in range(3):
        part = [tuple(z[i : i + 1] for z in pair) for pair in (primals, tangents)]
        out, _ = jvp(network, *part, condition={"label": condition["label"][i : i + 1]})
        out.square().sum().backward()
    torch.testing.assert_close([p.grad for p in network.parameters()], whole)


def test_transformer_layer_of_torch(arguments):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    x, dx = torch.rand(2, 5, 8).double(), torch.rand(2, 5, 8).double()
    report = verify(Ignoring(layer), Batch(x, {}))
    assert report.ok and not report.fallbacks, report


class Ignoring(nn.Module):
    """A network of x alone as a network of (x, t, condition)."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x, t, condition):
        return self.network(x) * t.cos().view(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("part", ["module", "function"])
def test_compiles_into_one_graph(network, arguments, part):
    primals, tangents, condition = arguments
    expected = jvp(network, primals, tangents, condition=condition)

    def step(network, primals, tangents, condition):
        return jvp(network, primals, tangents, condition=condition)

    compile = dict(fullgraph=True, backend="aot_eager")
    if part == "module":
        out = step(torch.compile(network, **compile), *arguments)
    else:
        out = torch.compile(step, **compile)(network, *arguments)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        gradients(network, out[0].square().mean()), gradients(network, expected[0].square().mean())
    )


def batch(samples: int = 5) -> Batch:
    return Batch(torch.randn(samples, 2, 4, 4) / 2, {"label": torch.arange(samples) % 3})


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
    wrong = lambda x: Dual(sine(x.primal), x.tangent)  # noqa: E731
    monkeypatch.setitem(RULES, sine._opoverload, wrong)
    report = verify(Ignoring(Sine()), batch())
    assert not report.ok and report.difference > 1e-2 and report.forward == report.gradient == 0
    assert "FAILED" in str(report)


def test_verify_finds_a_cut_graph(monkeypatch):
    cut = lambda x: Dual(sine(x.primal).detach(), x.tangent * x.primal.detach().cos())  # noqa: E731
    monkeypatch.setitem(RULES, sine._opoverload, cut)
    report = verify(Ignoring(Sine()), batch())
    assert not report.ok and report.gradient == math.inf and report.difference < 1e-6


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
