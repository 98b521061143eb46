"""Every rule of Dual against torch.func.jvp in float64, with F and its gradient unchanged."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_core.dual import fallbacks, jvp

BOOLEAN = (torch.arange(36).reshape(6, 6) * 7 % 5) > 1  # every row keeps a key
ADDITIVE = torch.linspace(-2, 2, 36, dtype=torch.float64).reshape(6, 6)
KERNEL = torch.linspace(-1, 1, 120, dtype=torch.float64)
INDEX = torch.tensor([2, 0, 1, 1])


def kernel(*shape: int) -> torch.Tensor:
    return KERNEL[: torch.Size(shape).numel()].reshape(shape)


# name -> function of x and y, both (2, 4, 6) with entries in (0.2, 1.8); x - 1 has both signs.
CASES = {
    # arithmetic
    "add": lambda x, y: x + y,
    "add plain": lambda x, y: 3 + x + ADDITIVE[:4],
    "add alpha": lambda x, y: torch.add(x, y, alpha=2) + ADDITIVE[:4].sub(y, alpha=0.5),
    "add broadcast": lambda x, y: x[:, :1] + y + x.sum(),
    "sub": lambda x, y: (1 - x) - (y - 2) - (x - y),
    "mul": lambda x, y: x * y * 2 * ADDITIVE[:4],
    "mul broadcast": lambda x, y: x * y[:, :1] * ADDITIVE[:4],
    "div": lambda x, y: x / y + 1 / x + x / 3 + ADDITIVE[:4] / y,
    "neg": lambda x, y: -x,
    "abs": lambda x, y: (x - 1).abs() + abs(y - 1),
    "pow": lambda x, y: x**2 + y**3 + x**0.5 + y**-0.5,
    "pow tensor": lambda x, y: x**y + 2**x + x ** ADDITIVE[:4],
    "square": lambda x, y: x.square(),
    "sqrt": lambda x, y: x.sqrt(),
    "rsqrt": lambda x, y: torch.rsqrt(x),
    "reciprocal": lambda x, y: x.reciprocal(),
    "exp": lambda x, y: x.exp() + torch.expm1(y),
    "log": lambda x, y: x.log() + torch.log1p(y),
    "sin cos tan": lambda x, y: x.sin() + torch.cos(y) + torch.tan(x / 2),
    "atan erf": lambda x, y: torch.atan(x) + torch.erf(y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3) + x.lerp(ADDITIVE[:4], y),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=2) + torch.addcmul(ADDITIVE[:4], y, x),
    "clamp": lambda x, y: x.clamp(0.5, 1.5) + torch.clamp_min(y, 1.0) + x.clip(max=1.0),
    "where": lambda x, y: torch.where(x > 1, x, y * 2) + x.where(y > 1, 0.5),
    "masked_fill": lambda x, y: x.masked_fill(y > 1, 3.0),
    # activations
    "tanh": lambda x, y: (x - 1).tanh(),
    "sigmoid": lambda x, y: torch.sigmoid(x - 1) + F.logsigmoid(y - 1),
    "relu": lambda x, y: F.relu(x - 1) + (y - 1).relu() + F.leaky_relu(x - 1, 0.2),
    "silu": lambda x, y: F.silu(x - 1),
    "mish elu": lambda x, y: F.mish(x - 1) + F.elu(y - 1, 1.5),
    "gelu": lambda x, y: F.gelu(x - 1) + F.gelu(y - 1, approximate="tanh"),
    "softplus": lambda x, y: F.softplus(x - 1, beta=2),
    "softmax": lambda x, y: F.softmax(x, dim=1) + x.softmax(-1) + torch.softmax(y, 0),
    "log_softmax": lambda x, y: F.log_softmax(x, -1) + y.log_softmax(1),
    # statistics and norms
    "sum": lambda x, y: x.sum(1, keepdim=True) + y.sum((0, 2)).sum(),
    "mean": lambda x, y: x.mean() + y.mean(dim=(1, 2), keepdim=True),
    "var": lambda x, y: x.var(1) + y.var(dim=1, unbiased=False) + x.var(1, correction=0),
    "std": lambda x, y: x.std((1, 2)) + torch.std(y),
    "norm": lambda x, y: x.norm(dim=1) + torch.linalg.vector_norm(y, dim=1) + x.norm(),
    "cumsum": lambda x, y: x.cumsum(1),
    "layer_norm": lambda x, y: F.layer_norm(x, (6,)) + F.layer_norm(y, (6,), ADDITIVE[0]),
    "layer_norm affine": lambda x, y: F.layer_norm(x, (4, 6), kernel(4, 6), kernel(4, 6)),
    "group_norm": lambda x, y: F.group_norm(x, 2) + F.group_norm(y, 1, kernel(4), kernel(4)),
    "group_norm 2d": lambda x, y: F.group_norm(x.unflatten(-1, (2, 3)), 2, kernel(4)),
    "rms_norm": lambda x, y: F.rms_norm(x, (6,)) + F.rms_norm(y, (4, 6), kernel(4, 6), 1e-3),
    "pixel norm": lambda x, y: x * (x.square().mean(-1, keepdim=True) + 1e-4).rsqrt(),
    "normalize": lambda x, y: F.normalize(x) + F.normalize(y, dim=-1),
    "batch_norm": lambda x, y: F.batch_norm(x, kernel(4), kernel(4) + 2, kernel(4), kernel(4)),
    # products and convolutions
    "linear": lambda x, y: F.linear(x, kernel(3, 6), kernel(3)),
    "linear dual": lambda x, y: F.linear(x, y[0], y[1, :, 0]),
    "matmul": lambda x, y: x @ y.mT + x @ ADDITIVE[:, :4] + kernel(3, 4, 6)[0] @ y.mT,
    "bmm": lambda x, y: torch.bmm(x, y.transpose(1, 2)),
    "einsum": lambda x, y: torch.einsum("bij,bkj,jl->bikl", x, y, ADDITIVE),
    "baddbmm": lambda x, y: torch.baddbmm(x[..., :4], x, y.mT, beta=2, alpha=3),
    "addmm": lambda x, y: (
        torch.addmm(kernel(4), x[0], y[0].T, beta=0.5)
        + x[0, :, :4].addmm(ADDITIVE[:4], y[1].T, beta=2)
        + torch.addmm(x[0, 0, :4], ADDITIVE[:4], kernel(6, 4), beta=0.5, alpha=3)
    ),
    "outer": lambda x, y: torch.outer(x[0, 0], y[1, 0]),
    "conv1d": lambda x, y: (
        F.conv1d(x, kernel(3, 4, 3), kernel(3), padding=1) + F.conv1d(x, y[:1])[:1]
    ),
    "conv2d": lambda x, y: F.conv2d(x[None], kernel(4, 1, 3, 3), stride=2, padding=1, groups=2),
    "conv3d": lambda x, y: F.conv3d(x[None, None], kernel(3, 1, 2, 2, 2), kernel(3)),
    "conv_transpose1d": lambda x, y: F.conv_transpose1d(x, kernel(4, 2, 3), kernel(2), stride=2),
    "conv_transpose2d": lambda x, y: F.conv_transpose2d(x[None], kernel(2, 3, 2, 2), stride=2),
    "conv_transpose3d": lambda x, y: F.conv_transpose3d(x[None, None], kernel(1, 2, 2, 2, 2)),
    # views and copies
    "reshape": lambda x, y: x.reshape(8, 6).view(2, -1).flatten() + y.ravel(),
    "permute": lambda x, y: x.permute(2, 0, 1) + y.movedim(-1, 0) + x.swapaxes(0, 2).mT,
    "transpose": lambda x, y: x[0].t() + y[0].T + torch.transpose(x[1], 0, 1),
    "squeeze": lambda x, y: x.unsqueeze(1).squeeze(1) + y[:, None].squeeze(),
    "unflatten": lambda x, y: x.unflatten(-1, (2, 3)).flatten(1, 2),
    "chunk": lambda x, y: x.chunk(2, dim=1)[0] * y.chunk(2, 1)[1],
    "split": lambda x, y: x.split(2, dim=-1)[1] * torch.split(y, [3, 2, 1], -1)[1],
    "unbind": lambda x, y: x.unbind(1)[2] + torch.unbind(y, 1)[0] + sum(row for row in x[0]),
    "cat": lambda x, y: torch.cat([x, ADDITIVE[None, :4].repeat(2, 1, 1), y], dim=1),
    "stack": lambda x, y: torch.stack((x, y, x), dim=2),
    "expand": lambda x, y: x[:, :1].expand(-1, 4, -1) + y[:1].expand_as(x),
    "getitem": lambda x, y: x[..., 1:3] * y[:, :, None, 0] + x[:, INDEX[:3], -2:].sum(),
    "index": lambda x, y: (
        x.index_select(1, INDEX) + y.gather(1, INDEX.view(1, 4, 1).expand(2, 4, 6))
    ),
    "pad": lambda x, y: F.pad(x, (1, 2), value=3.0) + F.pad(y, (2, 1), mode="reflect"),
    "roll": lambda x, y: x.roll(1, 0) + torch.roll(y, (1, 2), (1, 2)) + x.flip(1),
    "repeat": lambda x, y: x.repeat(1, 2, 1) + y.repeat_interleave(2, dim=1) + x.tile(1, 2, 1),
    "contiguous": lambda x, y: x.mT.contiguous() + y.clone().mT,
    "casts": lambda x, y: x.to(torch.float64).double() + y.to(x).type_as(y),
    "pixel_shuffle": lambda x, y: (
        F.pixel_shuffle(x[None].mT[:, :, :4].mT.mT.flatten(1, 2)[..., None], 2)
        + F.pixel_unshuffle(y[:, None], 2).sum()
    ),
    "interpolate": lambda x, y: (
        F.interpolate(x, scale_factor=2) + F.interpolate(y, 12, mode="linear")
    ),
    "interpolate 2d": lambda x, y: F.interpolate(x[None], (3, 5), mode="bicubic", antialias=True),
    "pool": lambda x, y: F.avg_pool1d(x, 2) + F.adaptive_avg_pool1d(y, 3) + F.avg_pool2d(x, (1, 2)),
    "unfold": lambda x, y: (
        F.fold(F.unfold(x[:, None], (2, 2)), (4, 6), (2, 2)) + y.unfold(2, 2, 2).sum()
    ),
    "triangle": lambda x, y: x.tril() + torch.triu(y, 1) + x.diagonal(0, 1, 2).sum(),
    "complex": lambda x, y: torch.view_as_real(
        torch.view_as_complex(x.contiguous().unflatten(-1, (3, 2)))
        * torch.polar(kernel(3), kernel(3))
    ),
    "fft": lambda x, y: (
        torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(y)) + torch.fft.fft(x).real
    ),
    # attention: (batch, heads, tokens, channels) = (2, 2, 6, 2) from x.mT
    "attention": lambda x, y: attend(x, y, x * y),
    "attention scale": lambda x, y: attend(x, y, y, scale=0.3),
    "attention causal": lambda x, y: attend(x, y, x, is_causal=True),
    "attention causal long": lambda x, y: attend(x[:, :, :4], y, x, is_causal=True),
    "attention boolean": lambda x, y: attend(x, y, x, attn_mask=BOOLEAN),
    "attention additive": lambda x, y: attend(x, y, x, attn_mask=ADDITIVE),
    "attention batch mask": lambda x, y: attend(
        x, y, x, attn_mask=torch.stack([BOOLEAN, BOOLEAN.T | BOOLEAN])[:, None]
    ),
    "attention dual mask": lambda x, y: attend(x, y, x, attn_mask=x[0, 0] * ADDITIVE),
    "attention one sided": lambda x, y: (
        attend(x, ADDITIVE[:4].expand(2, 4, 6), x)
        + attend(ADDITIVE[:4].expand(2, 4, 6), y, ADDITIVE[:4].expand(2, 4, 6))
    ),
    "attention values": lambda x, y: attend(*[ADDITIVE[:4].expand(2, 4, 6)] * 2, y),
    "attention grouped": lambda x, y: F.scaled_dot_product_attention(
        x[:, :, None], y[:, :2, None], y[:, 2:, None], enable_gqa=True
    ),
    "attention 3d": lambda x, y: F.scaled_dot_product_attention(x, y, x),
}


def attend(query, key, value, **kwargs):
    heads = (z.mT.unflatten(-1, (2, 2)).transpose(1, 2) for z in (query, key, value))
    return F.scaled_dot_product_attention(*heads, **kwargs)


def inputs(strided: bool) -> list[torch.Tensor]:
    """x, y and their tangents: (2, 4, 6), contiguous or with the strides of a transposed tensor."""
    generator = torch.Generator().manual_seed(0)
    draw = (torch.rand(2, 6, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    out = [z.mT if strided else z.mT.contiguous() for z in draw]
    return [out[0] * 1.6 + 0.2, out[1] * 1.6 + 0.2, out[2] - 0.5, out[3] - 0.5]


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("name", CASES)
def test_rule(name, strided):
    function = CASES[name]
    x, y, dx, dy = inputs(strided)
    x.requires_grad_(True), y.requires_grad_(True)
    with fallbacks() as slow:
        out, tangent = jvp(function, (x, y), (dx, dy))
    plain = function(x, y)
    with sdpa_kernel(SDPBackend.MATH):
        reference = torch.func.jvp(
            function, *(tuple(z.detach().contiguous() for z in pair) for pair in ((x, y), (dx, dy)))
        )[1]

    assert not slow
    assert not tangent.requires_grad and tangent.dtype == out.dtype
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-15)
    torch.testing.assert_close(tangent, reference, rtol=1e-10, atol=1e-12)
    gradients = [
        torch.autograd.grad(f.abs().square().sum(), (x, y), allow_unused=True) for f in (out, plain)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def waves(x):
    return torch.view_as_complex(x.contiguous().unflatten(-1, (3, 2)))


# Where a formula divides by zero or is one of real numbers: name -> function of x and y as above.
CORNERS = {
    "0 to a power": lambda x, y: sum(
        (x - x[:1]) ** n for n in (0, 1, 2, ADDITIVE[:4].relu().round())
    ),
    "a power of 0": lambda x, y: 0**y + torch.pow(torch.zeros_like(x), y),
    "std of equals": lambda x, y: x[..., :1].expand(2, 4, 6).std(-1) + (y - y).std(),
    "diff prepend": lambda x, y: x.diff(
        dim=-1, prepend=y[..., :1], append=ADDITIVE[None, :4, :1].expand(2, 4, 1)
    ),
    "operators": lambda x, y: +x % 0.7 + y,
    "nansum": lambda x, y: torch.where(x > 1, x, torch.nan).nansum(-1) + y.sum(-1),
    "other": lambda x, y: torch.mul(input=x, other=y) + torch.sub(x, other=y),
    "complex abs": lambda x, y: waves(x).abs(),
    "complex tanh": lambda x, y: waves(x).tanh().real + waves(y).sigmoid().imag,
    "complex sgn": lambda x, y: waves(x).sgn().real,
    "complex var": lambda x, y: waves(x).var(-1) + waves(y).std(-1),
    "complex norm": lambda x, y: torch.linalg.vector_norm(waves(x), dim=-1) + waves(y).norm(dim=-1),
}


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name):
    values, along = inputs(False)[:2], inputs(False)[2:]
    out, found = jvp(CORNERS[name], tuple(values), tuple(along))
    expected, reference = torch.func.jvp(CORNERS[name], tuple(values), tuple(along))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-12)
