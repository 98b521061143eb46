"""Dual through whole networks: what it keeps, what it counts, what it refuses."""

import copy

import pytest
import torch
from dual_networks import Network, gradients
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from scm_core.dual import Dual, fallbacks, jvp


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


LINEAR, LAYER, RMS, GROUP = nn.Linear(8, 8), nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 6)
VECTOR = nn.Parameter(torch.linspace(-1, 1, 8))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: LAYER(LINEAR(x)),
        lambda x: RMS(LINEAR(x)),
        lambda x: GROUP(LINEAR(x)),
        lambda x: LINEAR(x).softmax(-1) * F.normalize(LINEAR(x)) + x,
        lambda x: F.scaled_dot_product_attention(
            LINEAR(x), x, x, attn_mask=torch.ones(6, 6).tril()
        ),
        lambda x: torch.linalg.vecdot(LINEAR(x), VECTOR),  # by the fallback
    ],
)
def test_bfloat16_autocast_of_mixed_dtypes(function):
    torch.manual_seed(0)
    x, dx = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    exact = jvp(function, (x,), (dx,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, tangent = jvp(function, (x,), (dx,))
        plain = function(x)
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
    assert tangent.dtype == out.dtype
    for value, reference in zip((out, tangent), exact, strict=True):
        assert (value - reference).norm() < 0.02 * reference.norm()
    assert torch.autograd.grad(out.float().square().sum(), LINEAR.weight)[0].any()


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


def test_a_module_that_asks_for_a_tensor_gets_yes(arguments):
    (x, t), (dx, dt), _ = arguments

    def network(x, t):
        assert torch.is_tensor(t) and isinstance(x, torch.Tensor)
        assert isinstance(x, (list, torch.Tensor)) and not isinstance(x, (list, nn.Module))
        return x * t[:, None, None, None]

    out, tangent = jvp(network, (x, t), (dx, dt))
    expected = torch.func.jvp(network, (x, t), (dx, dt))
    torch.testing.assert_close((out, tangent), expected)


def test_code_of_torch_sees_a_dual_as_it_is(arguments):
    (x, _), _, _ = arguments
    dual = Dual(x, x)
    assert isinstance(dual, Dual) and type(dual) is Dual
    assert isinstance(copy.copy(dual), Dual) and dual.__class__ is Dual
    assert "Dual(primal=" in repr(dual)
    for function in (torch.tensor, torch.as_tensor):  # C++, which would take it for its own
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            isinstance(function(dual), torch.Tensor)
