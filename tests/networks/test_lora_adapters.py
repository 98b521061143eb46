"""Adapters: several models on one copy of the weights, and what becomes of them when merged."""

import copy

import pytest
import torch
from torch import nn

from scm_core import UserError, dual
from scm_core.contract.fields import Label
from scm_core.contract.spec import Batch
from scm_core.engine import sharding
from scm_core.engine.replay import cast_once
from scm_core.method.objectives.base import trainable_copy
from scm_core.networks import backbones, lora
from scm_core.networks.backbones import BackboneConfig

pytest.importorskip("peft")

SCHEMA = {"label": Label(3)}
TINY = {
    "transformer": {"width": 32, "depth": 2, "heads": 2},
    "unet": {"channels": (8, 16), "blocks": 1, "embedding": 16},
}
NETWORKS = [
    ("transformer", (1, 8, 8)),
    ("unet", (2, 16)),
    ("unet", (1, 8, 8)),
    ("unet", (1, 4, 4, 4)),
]
each = pytest.mark.parametrize("name, shape", NETWORKS)


def make(name="transformer", shape=(1, 8, 8), dropout=0.0):
    config = BackboneConfig(name=name, dropout=dropout, options=TINY[name])
    network = backbones.build(config, shape, SCHEMA).double()
    for parameter in network.parameters():  # a fresh network is zero
        nn.init.normal_(parameter, std=0.1)
    return network


def point(shape=(1, 8, 8), n=2):
    x = torch.randn(n, *shape, dtype=torch.float64)
    return x, torch.rand(n, dtype=torch.float64) * 1.5, {"label": torch.arange(n) % 3}


def trained(adapted):
    """An adapter that is no longer zero."""
    for parameter in adapted.parameters():
        nn.init.normal_(parameter, std=0.1)
    return adapted


@each
def test_an_adapter_starts_as_the_network_and_is_merged_as_it_computes(name, shape):
    network, given = make(name, shape), point(shape)
    plain, before = copy.deepcopy(network), network(*given)
    adapters = lora.Adapters(network, 3, alpha=6)
    student, teacher = adapters.new(), adapters.off()
    torch.testing.assert_close(student(*given), before, rtol=0, atol=1e-12)
    after = trained(student)(*given)
    assert (after - before).norm() > 0.05 * before.norm()
    assert torch.equal(teacher(*given), before)
    merged = lora.merged(plain.state_dict(), student.state_dict(), scale=2.0)
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(*given), after, rtol=1e-10, atol=1e-10)


@each
def test_the_tangent_through_an_adapter_is_that_of_autodiff(name, shape):
    student = trained(lora.Adapters(make(name, shape), 3).new())
    x, _, condition = point(shape)
    report = dual.verify(student, Batch(0.5 * x, condition))
    assert report.ok, str(report)


def test_no_operation_of_an_adapter_needs_the_slow_fallback():
    x, t, condition = point()
    student = trained(lora.Adapters(make("unet"), 3).new())
    with dual.fallbacks() as used:
        dual.jvp(student, (x, t), (x, t), condition=condition)
    assert not used


def test_the_adapter_alone_is_trained_and_saved_under_its_layers_names():
    network = make()
    names, size = list(network.state_dict()), sum(p.numel() for p in network.parameters())
    student = lora.Adapters(network, 2).new()
    student(*point()).square().sum().backward()
    learns = {name for name, p in student.named_parameters() if p.grad is not None}
    assert learns == set(student.state_dict())
    layers = {key.rsplit(".lora_", 1)[0] for key in student.state_dict()}
    assert {f"{layer}.weight" for layer in layers} < set(names)
    assert not any(p.grad is not None for n, p in network.named_parameters() if "lora" not in n)
    assert sum(p.numel() for p in student.parameters()) < size / 3


def test_one_copy_of_the_weights_serves_all():
    network = make()
    held = {id(p) for p in network.parameters()}
    adapters = lora.Adapters(network, 2)
    student, teacher = adapters.new(), adapters.off()
    fake = trainable_copy(teacher)
    assert {id(p) for p in lora.whole(fake).parameters()} >= held
    assert lora.whole(student) is lora.whole(teacher) is lora.whole(fake) is network
    assert not list(teacher.parameters()) and not teacher.state_dict()
    own = [{id(p) for p in model.parameters()} for model in (student, fake)]
    assert own[0] and own[1] and not own[0] & own[1] and not (own[0] | own[1]) & held


def test_a_second_adapter_is_a_model_of_its_own():
    adapters, given = lora.Adapters(make(), 2), point()
    student, teacher = trained(adapters.new()), adapters.off()
    before = student(*given)
    fake = trainable_copy(teacher)
    assert torch.equal(student(*given), before)
    torch.testing.assert_close(fake(*given), teacher(*given), rtol=0, atol=1e-12)
    loss = student(*given).square().sum() + trained(fake)(*given).square().sum()
    assert not torch.equal(fake(*given), teacher(*given))
    loss.backward()
    assert all(p.grad is not None for model in (student, fake) for p in model.parameters())


def test_a_copy_of_a_plain_network_is_a_copy():
    network = make().eval().requires_grad_(False)
    copied = trainable_copy(network)
    assert copied.training and all(p.requires_grad for p in copied.parameters())
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in network.parameters()}


def test_what_fails_with_an_adapter_on_leaves_it_off():
    network, given = make(), point()
    adapters = lora.Adapters(network, 2)
    student, teacher = trained(adapters.new()), adapters.off()
    before = teacher(*given)
    with pytest.raises(ValueError):
        student(given[0][..., :7], *given[1:])
    assert torch.equal(teacher(*given), before) and torch.equal(network(*given), before)


def test_the_teacher_drops_nothing_and_leaves_no_graph():
    adapters, given = lora.Adapters(make(dropout=0.5), 2), point()
    student, teacher = trained(adapters.new()).train(), adapters.off().eval().requires_grad_(False)
    first = teacher(*given)
    assert not torch.equal(student(*given), student(*given))
    assert torch.equal(teacher(*given), first) and not first.requires_grad
    assert student(*given).requires_grad


@pytest.mark.parametrize("through_dual", [False, True])
def test_what_is_computed_once_more_has_the_adapter_it_had(through_dual):
    gradients = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        adapters, given = lora.Adapters(make(), 2), point()
        student, fake = trained(adapters.new()), trained(adapters.new())
        if recomputed:
            sharding.recompute(lora.whole(student), lora.context_fn(student))
        if through_dual:
            x, t, condition = given
            ours, _ = dual.jvp(student, (x, t), (x, t), condition=condition)
        else:
            ours = student(*given)
        theirs = fake(*given)
        adapters.off()(*given)
        (ours.square().sum() + theirs.square().sum()).backward()
        gradients.append([p.grad for m in (student, fake) for p in m.parameters()])
    torch.testing.assert_close(*gradients)


def test_an_adapter_moves_with_its_network():
    network = make()
    student = lora.Adapters(network, 2).new().float()
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert {p.dtype for p in student.parameters()} == {torch.float32}


@torch.no_grad()
def test_weights_that_the_teacher_reads_in_half_change_no_bit_of_the_student():
    adapters = lora.Adapters(make("unet").float(), 2)
    student, teacher = trained(adapters.new()), adapters.off().eval()
    x, t, condition = point()
    x, t = x.float(), t.float()

    def evaluated(model):
        with torch.autocast("cpu", torch.bfloat16):
            return dual.jvp(model, (x, t), (x, t), condition=condition)

    def teach():
        with torch.autocast("cpu", torch.bfloat16):
            return teacher(x, t, condition)

    before = evaluated(student)
    cast_once(lora.whole(teacher), teach)
    dtypes = {p.dtype for p in lora.whole(teacher).parameters()}
    assert dtypes == {torch.bfloat16, torch.float32}
    assert all(p.dtype == torch.float32 for p in student.parameters())
    assert all(map(torch.equal, evaluated(student), before))


def test_peft_merges_as_we_do():
    from peft import LoraConfig, LoraModel

    network, given = make("unet"), point()
    plain = copy.deepcopy(network)
    student = trained(lora.Adapters(network, 2, alpha=4).new())
    names = lora.targeted(plain)
    theirs = LoraModel(plain, LoraConfig(r=2, lora_alpha=4, target_modules=names), "default")
    state = {f"{k[:-7]}.default.weight": v for k, v in student.state_dict().items()}
    assert not plain.load_state_dict(state, strict=False).unexpected_keys
    torch.testing.assert_close(theirs.merge_and_unload()(*given), student(*given))


def test_targets_are_the_ends_of_names():
    network = make()
    assert lora.targeted(network, ["qkv"]) == [f"blocks.{i}.attention.qkv" for i in range(2)]
    found = lora.targeted(network, ["attention.out", "stem.convolution"])
    assert found == ["stem.convolution", *(f"blocks.{i}.attention.out" for i in range(2))]
    with pytest.raises(UserError, match="no layer is called kqv; contract, convolution, .*qkv"):
        lora.targeted(network, ["qkv", "kqv"])


class Scaled(nn.Linear):
    """One that W + B A would not be of."""

    def forward(self, x):
        return 2 * super().forward(x)


class Odd(nn.Module):
    """Layers of which one alone can have an adapter."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight
        self.grouped, self.dilated = nn.Conv1d(8, 8, 3, groups=2), nn.Conv1d(8, 8, 3, dilation=2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.up, self.scaled = nn.ConvTranspose1d(8, 8, 2), Scaled(8, 8)
        self.good = nn.Linear(8, 8)


def test_layers_whose_weights_are_not_theirs_alone_have_no_adapter():
    assert lora.adaptable(Odd()) == ["good"]
    with pytest.raises(UserError, match="no layer of this network can have an adapter"):
        lora.Adapters(nn.Sequential(nn.SiLU()), 2)


def test_a_network_of_diffusers_has_adapters():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).double()
    plain = copy.deepcopy(network)
    student = trained(lora.Adapters(network, 2, targets=["to_q", "to_v", "conv1"]).new())
    x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.tensor([0.3, 0.8]).double()
    after = student(x, t).sample
    assert not torch.allclose(plain(x, t).sample, after)
    plain.load_state_dict(lora.merged(plain.state_dict(), student.state_dict(), scale=1.0))
    torch.testing.assert_close(plain(x, t).sample, after)
