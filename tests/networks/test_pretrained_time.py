"""Embeddings of 1000 t made slow: the network stays what it was, but for how fast it follows t."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scm_core import dual
from scm_core.contract.fields import Label
from scm_core.contract.spec import Batch
from scm_core.method.conversions import RectifiedFlow
from scm_core.networks import lora
from scm_core.networks.pretrained import FAMILIES, Adapter, time
from scm_core.testing.network import time_embedding

diffusers = pytest.importorskip("diffusers")

FIELDS = {"label": Label(10)}


@pytest.fixture
def adapter():
    """A DiT of rectified flow that makes little of its fast sinusoids."""
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    for parameter in network.parameters():
        if not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.1)
    first = embedder(network).linear_1
    with torch.no_grad():
        first.weight[:, :60] *= 0.02  # cosines, the fast ones first
        first.weight[:, 128:188] *= 0.02
    kind = "DiTTransformer2DModel"
    return Adapter(network, RectifiedFlow(1000), FAMILIES[kind], FIELDS).eval()


def embedder(network):
    return network.transformer_blocks[0].norm1.emb.timestep_embedder


X = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
LABEL = {"label": torch.arange(6)}
T = torch.linspace(0.2, 1.5, 6)


@torch.no_grad()
def frequency(adapter, h=0.002):
    """|d2F/dt2| over |dF/dt|."""
    before, F, after = (adapter(X, T + k * h, LABEL) for k in (-1, 0, 1))
    bend, slope = (before - 2 * F + after) / h**2, (after - before) / (2 * h)
    return float(bend.abs().mean() / slope.abs().mean())


def slowed(adapter):
    """As a full student begins."""
    found = time.slow(adapter, X, LABEL)
    time.hold(adapter, X, LABEL)
    return found


def test_f_follows_t_slowly_and_is_what_it_was(adapter):
    with torch.no_grad():
        before, fast = adapter(X, T, LABEL), frequency(adapter)
    [found] = slowed(adapter)
    with torch.no_grad():
        after = adapter(X, T, LABEL)
    assert 80 < found.left_out < found.sinusoids == 256 and found.error < 0.4  # of 16 units
    assert (after - before).norm() < 0.02 * before.norm()
    assert frequency(adapter) < 10 < fast


def test_noise_does_not_teach_it_to_follow_t_fast(adapter):
    """As it does where sinusoids of slopes up to 20 stay: 2.9 after as many steps, and rising."""
    torch.manual_seed(0)
    slowed(adapter)
    optimizer = torch.optim.Adam(adapter.parameters(), 1e-3)
    for _ in range(100):
        F = adapter(X, 1.5 * torch.rand(6), LABEL)
        optimizer.zero_grad()
        (F - torch.randn_like(F)).square().mean().backward()
        optimizer.step()
    assert frequency(adapter) < 1.5


def test_it_is_a_network_of_its_class_and_what_was_left_out_stays_out(adapter, tmp_path):
    slowed(adapter)
    optimizer = torch.optim.Adam(adapter.parameters(), 1e-2)
    adapter(X, T, LABEL).square().mean().backward()
    optimizer.step()
    adapter.network.save_pretrained(tmp_path)
    plain = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    of_plain = Adapter(plain, adapter.path, adapter.family, FIELDS).eval()
    with torch.no_grad():
        torch.testing.assert_close(of_plain(X, T, LABEL), adapter(X, T, LABEL))


def test_an_adapter_is_slow_while_it_is_on_and_its_teacher_is_what_it_was(adapter):
    pytest.importorskip("peft")
    before = adapter(X, T, LABEL)
    on = []
    slowed = time.slow_while(on, adapter, X, LABEL)
    adapters = lora.Adapters(adapter, 2, on=on, slowed=slowed)
    teacher, student = adapters.off().eval(), adapters.new().eval()
    assert not any("timestep_embedder" in name for name in adapters.targets)
    torch.testing.assert_close(teacher(X, T, LABEL), before, rtol=0, atol=0)
    assert 0.001 < (student(X, T, LABEL) - before).norm() / before.norm() < 0.02
    with adapters.using(["any"], False):
        assert frequency(adapter) < 10
    assert all(found.error < 0.4 for found in slowed.values()) and frequency(adapter) > 12


def test_the_tangent_of_an_adapter_that_is_on_is_the_slow_one(adapter):
    on, along = ["any"], (torch.zeros_like(X), torch.ones(6))
    time.slow_while(on, adapter, X, LABEL)
    found = dual.jvp(adapter, (X, T), along, condition=LABEL)
    on.clear()
    fast = dual.jvp(adapter, (X, T), along, condition=LABEL)
    time.slow(adapter, X, LABEL)
    slow = dual.jvp(adapter, (X, T), along, condition=LABEL)
    torch.testing.assert_close(found, slow, rtol=1e-4, atol=1e-4)
    assert (fast[1] - slow[1]).norm() > 0.05 * slow[1].norm()


def test_what_is_slow_already_is_left_alone(adapter):
    adapter.path = RectifiedFlow(1)  # as one that embeds u itself
    assert slowed(adapter) == []


def test_the_check_judges_it_as_a_student_starts(adapter):
    subject = SimpleNamespace(network=adapter, seen=Batch(0.5 * X, LABEL))
    figure = time_embedding(subject)
    assert "(before it was slowed, " in figure
    assert float(figure.split("about ")[1].split()[0]) < 10
    assert not embedder(adapter.network)._forward_pre_hooks
