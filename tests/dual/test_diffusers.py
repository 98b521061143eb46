"""Dual through the networks of diffusers, unmodified: F, its gradient and dF/dt like autodiff's."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_core.dual import jvp

pytest.importorskip("diffusers")
from diffusers_networks import FLOAT32, LEFT_OUT, NETWORKS, TRAINED, classes, first  # noqa: E402

EVERY_TIME = {  # one of each kind: rotary writes, slices, packed lists, complex, experts, U-Nets
    "SanaTransformer2DModel",
    "FluxTransformer2DModel",
    "WanTransformer3DModel",
    "CogView4Transformer2DModel",
    "Lumina2Transformer2DModel",
    "ZImageTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "UNet2DModel",
    "UNet2DConditionModel",
    "StableAudioDiTModel",
}
NAMES = [
    pytest.param(name, marks=() if name in EVERY_TIME else pytest.mark.slow) for name in NETWORKS
]
pytestmark = pytest.mark.filterwarnings("ignore")


def autodiff(function, primals, tangents):
    """Forward over the unfused attention; twice backward where torch cannot do that."""
    with sdpa_kernel(SDPBackend.MATH):
        try:
            with torch.no_grad():
                return torch.func.jvp(function, primals, tangents)[1]
        except RuntimeError:
            return torch.autograd.functional.jvp(function, primals, tangents)[1]


@pytest.mark.parametrize("name", NAMES)
def test_like_autodiff(name):
    tiny = NETWORKS[name]
    dtype, limit = (torch.float32, 1e-5) if name in FLOAT32 else (torch.float64, 1e-6)
    network = tiny.build().train(name in TRAINED).to(dtype)

    def function(x, t):
        return first(network(**tiny.arguments(x, t)))

    generator = torch.Generator().manual_seed(1)
    x, dx = (torch.randn(tiny.shape, generator=generator, dtype=dtype) for _ in range(2))
    t, dt = torch.tensor([0.3, 0.6], dtype=dtype), torch.tensor([1.0, -0.5], dtype=dtype)
    reference = autodiff(function, (x, t), (dx, dt))
    x.requires_grad_(True)
    out, tangent = jvp(function, (x, t), (dx, dt))
    plain = function(x, t)

    assert reference.norm() > 0 and not tangent.requires_grad
    assert (tangent - reference).norm() < limit * reference.norm()
    assert (out - plain).norm() < limit / 1e5 * plain.norm()
    gradients = [torch.autograd.grad(f.square().sum(), x)[0] for f in (out, plain)]
    assert (gradients[0] - gradients[1]).norm() < limit * gradients[1].norm()


def test_every_class_is_here_or_left_out_with_a_reason():
    built = {tiny.name for tiny in NETWORKS.values()}
    assert not built & LEFT_OUT.keys()
    assert classes() - LEFT_OUT.keys() <= built, "a class of diffusers without a tiny network"
