"""The networks: any grid, every size, and the rules that keep the tangent tame."""

import pytest
import torch

from scm_core import UserError, dual
from scm_core.contract.fields import Label, Vector
from scm_core.contract.spec import Batch
from scm_core.engine.config import load
from scm_core.networks import backbones
from scm_core.networks.backbones import BackboneConfig
from scm_core.networks.layers import convolution

SCHEMA = {"label": Label(3), "pose": Vector(2)}
SHAPES = [(2, 16), (1, 8, 12), (3, 4, 8, 8)]


def make(name, shape, **options):
    torch.manual_seed(0)
    net = backbones.build(BackboneConfig(name=name, options=options), shape, SCHEMA)
    for parameter in net.parameters():  # F starts at zero; a random one shows dependence
        torch.nn.init.normal_(parameter, std=0.05)
    return net


def batch(shape, n=2):
    x = torch.randn(n, *shape)
    return x, torch.rand(n) * 1.5, {"label": torch.arange(n) % 3, "pose": torch.randn(n, 2)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["transformer", "unet"])
def test_any_grid_in_the_same_shape_out(name, shape):
    net = make(name, shape)
    x, t, condition = batch(shape)
    F = net(x, t, condition)
    assert F.shape == x.shape
    for other in (net(x, t + 0.5, condition), net(x, t, None), net(x + 1, t, condition)):
        assert (F - other).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["transformer", "unet"])
def test_a_fresh_network_predicts_zero(name):
    net = backbones.build(BackboneConfig(name=name), (1, 8, 8), SCHEMA)
    x, t, condition = batch((1, 8, 8))
    assert net(x, t, condition).abs().max() == 0


@pytest.mark.parametrize("name", ["transformer", "unet"])
def test_tangent_and_gradients_in_float64(name):
    x, _, condition = batch((1, 8, 8))
    report = dual.verify(make(name, (1, 8, 8)), Batch(0.5 * x, condition))
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["transformer", "unet"])
def test_no_operation_needs_the_slow_fallback(name):
    net = make(name, (1, 8, 8))
    x, t, condition = batch((1, 8, 8))
    with dual.fallbacks() as used:
        dual.jvp(net, (x, t), (torch.ones_like(x), torch.ones_like(t)), condition=condition)
    assert not used


def test_the_transformer_takes_another_grid_at_sampling_time():
    net = make("transformer", (1, 8, 8))
    x, t, condition = batch((1, 12, 16))
    assert net(x, t, condition).shape == x.shape


@pytest.mark.parametrize("name", ["transformer", "unet"])
@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "xl", "xxl"])
def test_sizes_build_and_grow(name, size):
    with torch.device("meta"):
        net = backbones.build(BackboneConfig(name=name, size=size), (4, 64, 64), SCHEMA)
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    expected = {
        "transformer": [1.2, 29, 115, 407, 599, 1500],
        "unet": [0.7, 2.8, 28, 133, 237, 1500],
    }[name]
    position = ["tiny", "small", "base", "large", "xl", "xxl"].index(size)
    assert millions == pytest.approx(expected[position], rel=0.05)


@pytest.mark.parametrize("name", ["transformer", "unet"])
def test_time_stays_in_float32_under_autocast(name):
    """Nothing but rounding of the features separates bf16 from float32, near pi/2 too."""
    net = make(name, (1, 8, 8))
    x, _, condition = batch((1, 8, 8), 8)
    t = torch.linspace(1.4, 1.565, 8)
    with torch.autocast("cpu", torch.bfloat16):
        embedding = net.time(t)
        F = net(x, t, condition)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, net.time(t), rtol=0, atol=0)
    full = net(x, t, condition)
    assert (F - full).norm() / full.norm() < 0.03


def test_time_tangent_is_small_near_the_end():
    """|dF/dt| of the embedding stays of order one where a Fourier embedding explodes."""
    net = backbones.build(BackboneConfig(), (1, 8, 8), SCHEMA)
    t = torch.linspace(1.3, 1.57, 16)
    value, slope = torch.func.jvp(net.time, (t,), (torch.ones_like(t),))
    assert slope.norm() < 2 * value.norm()


@pytest.mark.parametrize(
    ("config", "shape", "words"),
    [
        (BackboneConfig(name="unnet"), (1, 8, 8), "backbone.name"),
        (BackboneConfig(size="huge"), (1, 8, 8), "backbone.size"),
        (BackboneConfig(name="unet"), (1, 9, 8), "divisible"),
        (BackboneConfig(name="transformer"), (1, 9, 8), "divisible"),
        (BackboneConfig(options={"wide": 3}), (1, 8, 8), "wide"),
        (BackboneConfig(patch=0), (1, 8, 8), "backbone.patch=0 must be at least 1"),
        (BackboneConfig(options={"heads": 0}), (1, 8, 8), "options.heads=0 must be at least 1"),
        (BackboneConfig(options={"width": -4}), (1, 8, 8), "options.width=-4 must be"),
        (BackboneConfig("unet", options={"channels": []}), (1, 8, 8), "channels=.. must be"),
        (BackboneConfig("unet", options={"channels": [0, 4]}), (1, 8, 8), "at least 1"),
        (BackboneConfig(dropout=5.0), (1, 8, 8), "backbone transformer: dropout probability"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(config, shape, words):
    with pytest.raises(UserError, match=words):
        backbones.build(config, shape, SCHEMA)


@pytest.mark.parametrize("name", backbones.NETWORKS)
@pytest.mark.parametrize(
    "words",
    [["cpu"], ["demo"], ["gpu"], ["smoke"], ["vizdoom", "backbone.options.channels=null"]],
)
def test_video_presets_go_with_either_network(name, words):
    preset, *more = words
    words = ["modality=video", f"preset={preset}", f"backbone.name={name}", *more]
    _, config = load(words)
    with torch.device("meta"):
        backbones.build(config.backbone, (16, 4, 8, 8), SCHEMA)


def test_factorised_attention_sees_a_frame_then_all_of_time():
    """What happens at the far end of time is out of the convolutions' reach, and of one block's."""
    shape = (2, 16, 4, 4)
    x, t, condition = batch(shape)
    later = x.clone()
    later[:, :, -1] += 1
    for depth, reaches in ((1, False), (2, True)):
        net = make("transformer", shape, attention="factorised", depth=depth)
        change = (net(later, t, condition) - net(x, t, condition))[:, :, :2].abs().max()
        assert (change > 1e-5) == reaches


def test_factorised_attention_has_an_exact_tangent_and_no_fallback():
    shape = (2, 4, 4, 4)
    net = make("transformer", shape, attention="factorised")
    x, t, condition = batch(shape)
    report = dual.verify(net, Batch(0.5 * x, condition))
    assert report.ok, str(report)
    with dual.fallbacks() as used:
        dual.jvp(net, (x, t), (torch.ones_like(x), torch.ones_like(t)), condition=condition)
    assert not used


def test_factorised_attention_needs_a_grid_to_factorise():
    with pytest.raises(UserError, match="factorised attention needs a grid"):
        make("transformer", (2, 16), attention="factorised")
    with pytest.raises(UserError, match="attention=sparse is none of full, factorised"):
        make("transformer", (2, 8, 8), attention="sparse")


def test_a_convolution_over_two_frames_reads_no_memory_that_nobody_wrote():
    """oneDNN's does, in bf16: its gradient is NaN wherever that memory happened to hold one."""
    layer = convolution(3, 20, 20)
    for _ in range(20):
        x = torch.randn(8, 20, 2, 3, 3)
        spoilt = [torch.full((1 << k,), torch.nan, dtype=torch.bfloat16) for k in range(8, 22)]
        del spoilt  # what is allocated next is full of NaN
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(x).float().square().mean()
        (gradient,) = torch.autograd.grad(loss, layer.weight)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_convolution_over_few_frames_is_the_plain_one(frames):
    layer = convolution(3, 4, 6).double()
    x = torch.randn(2, 4, frames, 5, 5, dtype=torch.float64)
    plain = torch.nn.functional.conv3d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), plain)
