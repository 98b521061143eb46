"""In-place writes under Dual: value, gradient and tangent of whatever reads the memory later."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scm_core.dual import Dual, DualError, fallbacks, jvp, memory

WEIGHT = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6).requires_grad_(True)
MASK = torch.tensor([True, False, True, False])
INDEX = torch.tensor([2, 0])


def rotary(x, y):
    """Into an empty tensor, as Wan does."""
    out = torch.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * y[..., 1::2]
    out[..., 1::2] = x[..., 1::2] - y[..., 0::2]
    return out.type_as(x)


def part(x, y):
    """Into a part of a transposed projection, which its own view reads."""
    query = F.linear(x, WEIGHT).transpose(1, 2)
    tail = query[:, 1:]
    query[:, 2:] = query[:, 2:] * 2 + y.mT[:, 2:4, :].sin()
    return tail * query[:, 1:] + query.mT.reshape(2, -1).sum()


def padded(x, y):
    """Into plain zeros, one sample and slice at a time."""
    out = torch.zeros(2, 7, 6, dtype=x.dtype)
    for i, length in enumerate((2, 4)):
        out[i, :length] = x[i, :length]
        out[i, length : length + 2] = y[i, :2].square()
    return out * 3 + out.shape[1]


def plain_views(x, y):
    """Views and bases of plain memory, made before and after the write; plain writes after it."""
    out = torch.ones(2, 4, 6, dtype=x.dtype)
    row, flat, alias = out[:, 1], out.view(-1), out[:]
    row[:, :3] = x[:, 0, :3]
    out[0, 0] = 5.0
    flat[3:5] = y[0, 0, 3:5]
    row[1] += 1
    row.mul_(2)
    return out * flat.view(2, 4, 6) + alias.cos() + row[:, None]


def dual_views(x, y):
    """A view made before a write, a sum that shares the tangent, a write into a view."""
    z = x * y
    before, shared = z.reshape(2, 24)[:, 2:9], z + 1
    z[:, 0] = 0.0
    z.view(2, 24)[:, 20:] = y[:, 0, :4]
    before[:, :3] *= 3
    return z * shared + before.sum() + F.silu(z)


def masked(x, y):
    out = x.clone()
    out[:, MASK] = y[:, ~MASK]
    out[out > 1] = 0.5
    return out * out


def experts(x, y):
    """A mixture of experts: gathered rows written back by boolean masks."""
    out = torch.empty(8, 6, dtype=x.dtype)
    rows, choice = x.reshape(8, 6), torch.arange(8) % 2
    for i in range(2):
        out[choice == i] = F.linear(rows[choice == i], WEIGHT[:, :].mT @ WEIGHT) * (i + 1)
    return out.view(2, 4, 6)


def complex_rows(x, y):
    z = torch.view_as_complex(x.contiguous().unflatten(-1, (3, 2))) * 1
    out = torch.zeros_like(z)
    out[:, 1:] = z[:, :-1] * torch.polar(torch.ones(3).double(), torch.arange(3).double())
    out[..., 0] *= 2j
    return torch.view_as_real(out).flatten(-2)


def nested(x, y):
    """Rows of lists, cut, padded and packed again."""
    rows = [list(x.unbind(0)), [z[:2] for z in y.unbind(0)]]
    packed = torch.cat([torch.cat(group) for group in rows])
    lengths = [len(z) for group in rows for z in group]
    return nn.utils.rnn.pad_sequence(list(packed.split(lengths)), True, 2.0)


CASES = {
    "+=": lambda x, y: add(x * 1, y),
    "operators": lambda x, y: operators(x * 1, y),
    "methods": lambda x, y: (
        (x * 1).mul_(y).add_(x, alpha=2).clamp_(0.5, 2).sub_(1).div_(y).neg_().pow_(2).exp_()
    ),
    "fill": lambda x, y: (x * 2).fill_(3.0) * x + (y * 2).zero_() + (x * 2).copy_(y[:1]) * y,
    "masked_fill_": lambda x, y: (x * 2).masked_fill_(x > 1, 3.0) * y,
    "index_add_": lambda x, y: (
        (x * 1).index_add_(1, INDEX, y[:, :2]).index_copy_(1, INDEX, x[:, 1:3]) * y
    ),
    "scatter_add_": lambda x, y: torch.zeros(2, 4, 6, dtype=x.dtype).scatter_add_(
        1, INDEX.view(1, 2, 1).expand(2, 2, 6), y[:, :2]
    ),
    "scatter_reduce_": lambda x, y: (x * 1).scatter_reduce_(
        1, INDEX.view(1, 2, 1).expand(2, 2, 6), y[:, :2], reduce="mean"
    ),
    "inplace=True": lambda x, y: nn.SiLU(inplace=True)(x * WEIGHT) + nn.ReLU(True)(y - 1),
    "relu_": lambda x, y: F.relu_(x - 1) + torch.relu_(y - 1) + (x - 1).relu_(),
    "x @= y": lambda x, y: matmul(x, y),
    "rotary": rotary,
    "part": part,
    "padded": padded,
    "plain views": plain_views,
    "dual views": dual_views,
    "masked": masked,
    "experts": experts,
    "complex": complex_rows,
    "nested": nested,
}


def add(x, y):
    x += y
    return x * y


def operators(x, y):
    z = x
    x -= y
    x *= 3
    x /= y
    x **= 2
    return z + x


def matmul(x, y):
    x @= y.mT
    return x


def inputs():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.rand(2, 4, 6, generator=generator, dtype=torch.float64) for _ in range(4)]
    return [draw[0] * 1.6 + 0.2, draw[1] * 1.6 + 0.2, draw[2] - 0.5, draw[3] - 0.5]


@pytest.mark.parametrize("name", CASES)
def test_like_autodiff(name):
    function = CASES[name]
    x, y, dx, dy = inputs()
    reference = torch.func.jvp(function, (x.clone(), y.clone()), (dx, dy))
    x.requires_grad_(True), y.requires_grad_(True)
    out, tangent = jvp(function, (x, y), (dx, dy))
    plain = function(x, y)
    assert not tangent.requires_grad
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-15)
    torch.testing.assert_close(tangent, reference[1], rtol=1e-10, atol=1e-12)
    grads = [
        torch.autograd.grad(f.abs().square().sum(), (x, y, WEIGHT), allow_unused=True)
        for f in (out, plain)
    ]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["rotary", "part", "dual views", "inplace=True"])
def test_under_activation_checkpointing(name):
    x, y, dx, dy = inputs()
    x.requires_grad_(True)
    results = []
    for function in (CASES[name], lambda *z: checkpoint(CASES[name], *z, use_reentrant=False)):
        out, tangent = jvp(function, (x, y), (dx, dy))
        results.append((out, tangent, torch.autograd.grad(out.square().sum(), x)))
    torch.testing.assert_close(*results)


def test_nothing_is_left_behind():
    x, y, dx, dy = inputs()
    kept = []

    def network(x, y):
        out = padded(x, y)
        with torch.device("cpu"):  # a mode of torch's own, opened and closed around a write
            late = torch.zeros(2, 4, 6, dtype=x.dtype)
            late[:] = x
        kept.append(late)
        return (late * y).sum() + out.sum()

    jvp(network, (x, y), (dx, dy))
    assert not memory.SHADOWS and not torch.overrides._get_current_function_mode_stack()
    assert type(kept[0] + 1) is torch.Tensor
    with pytest.raises(ZeroDivisionError):
        jvp(lambda x, y: (padded(x, y), 1 / 0), (x, y), (dx, dy))
    assert not memory.SHADOWS and not torch.overrides._get_current_function_mode_stack()


def test_a_plain_tensor_outside_of_jvp_is_refused():
    x, y, dx, dy = inputs()
    with pytest.raises(DualError, match="outside of dual.jvp"):
        padded(Dual(x, dx), Dual(y, dy))


def test_writing_has_rules():
    x, y, dx, dy = inputs()
    with fallbacks() as slow:
        for function in CASES.values():
            jvp(function, (x.clone(), y), (dx, dy))
    assert not slow


def test_memory_read_as_another_dtype():
    def network(x, y, dtype):
        out = torch.zeros(2, 4, 6, dtype=x.dtype)
        out[:] = x
        return x * (out.view(dtype) != 0).any()

    x, y, dx, dy = inputs()
    torch.testing.assert_close(jvp(network, (x, y), (dx, dy), dtype=torch.int64), (x, dx))
    with pytest.raises(DualError, match="read as torch.float32"):
        jvp(network, (x, y), (dx, dy), dtype=torch.float32)
