"""Dual under CUDA's autocast, without a card: dtypes and devices are those of plain torch."""

from pathlib import Path

import pytest
import test_dual_rules as rules
import torch
from fake_cuda import MixedDtypes, assert_like_plain, draw, fake_cuda
from torch import nn
from torch.nn import functional as F

from scm_core.contract.fields import Label, schema_from_dict
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.dual import Dual, flash, jvp
from scm_core.dual.core import RULES
from scm_core.engine import sampling, stages
from scm_core.engine.config import load, read_yaml
from scm_core.engine.storage import read
from scm_core.method.ema import PowerEMA
from scm_core.networks import backbones
from scm_core.networks.backbones import NETWORKS, BackboneConfig

aten = torch.ops.aten
ROOT = Path(__file__).parents[2]
BF16, FP16 = torch.bfloat16, torch.float16
EVERY_TIME = [BF16, pytest.param(FP16, marks=pytest.mark.slow)]  # of the two dtypes, in networks
kernel = rules.kernel
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a card says it itself")


@pytest.fixture(params=[BF16, FP16], ids=str)
def half(request):
    """The dtype of autocast on a CUDA device that is not there."""
    with fake_cuda(request.param):
        yield request.param


@pytest.fixture(scope="module")
def moved():
    """The constants of the rules' cases on the device, in single precision as parameters are."""
    tensors = {name: x for name, x in vars(rules).items() if isinstance(x, torch.Tensor)}
    with fake_cuda(BF16):
        return {
            name: (x.float() if x.is_floating_point() else x).to("cuda")
            for name, x in tensors.items()
        }


@pytest.fixture
def constants(moved, monkeypatch):
    for name, value in moved.items():
        monkeypatch.setattr(rules, name, value)


def meeting(x, y):
    """What autocast has left in half precision meets what it has not."""
    z = F.linear(x, kernel(6, 6))
    both = torch.cat([x * z + y / z, z.exp() - torch.where(y > 1, y, z), torch.stack([z, y])[0]])
    return torch.addcmul(both[:2], y, z) + z**y + z.clamp(min=0.5) * torch.einsum("bij->bij", z)


def normed(x, y):
    """Gains in the dtype of what they scale."""
    gain = kernel(6).to(x.dtype)
    x, y = F.rms_norm(x, (6,), gain), F.layer_norm(y, (6,), gain.to(y.dtype), gain.to(y.dtype))
    return x + F.group_norm(y, 2, kernel(4).to(y.dtype)) + F.rms_norm(y, (6,), gain, 1e-6)


def multihead(x, y, **given):
    return nn.MultiheadAttention(6, 2, batch_first=True, device="cuda")(x, y, y, **given)[0]


# As the cases of the rules: functions of x and y, both (2, 4, 6).
MORE = {
    "two dtypes": meeting,
    "norms by gains": normed,
    "attention of plain keys": lambda x, y: rules.attend(x, kernel(2, 4, 6), kernel(2, 4, 6)),
    "attention dropout": lambda x, y: rules.attend(x, y, x, dropout_p=0.5),
    "attention dropout causal": lambda x, y: rules.attend(x, y, x, dropout_p=0.5, is_causal=True),
    "attention dropout boolean": lambda x, y: rules.attend(
        x, y, x, dropout_p=0.5, attn_mask=rules.BOOLEAN
    ),
    "attention dropout additive": lambda x, y: rules.attend(
        x, y, x, dropout_p=0.5, attn_mask=rules.ADDITIVE
    ),
    "multihead": lambda x, y: multihead(x, y, need_weights=False),
    "multihead weights": multihead,
    "multihead mask": lambda x, y: multihead(x, y, attn_mask=rules.BOOLEAN[:4, :4]),
    "dropout": lambda x, y: F.dropout(x) + F.dropout1d(y),
    "embedding": lambda x, y: x * F.embedding(rules.INDEX, kernel(4, 6)) + y,
    "convolutions": lambda x, y: (
        F.conv2d(F.conv1d(x, kernel(4, 4, 3), padding=1)[:, None], kernel(1, 1, 1, 1))[:, 0]
        + F.conv_transpose1d(y, kernel(4, 4, 1), kernel(4))
    ),
    "no rule": lambda x, y: x.cosh() + y.cumprod(-1) + F.hardswish(x) * y.logsumexp(1, True),
    "no rule, random": lambda x, y: F.rrelu(x, training=True) + F.prelu(y, kernel(1)),
}
REFUSED = {"lerp", "complex", "fft"}  # by plain torch: of mixed dtypes, or in bfloat16
INPUTS = [("single", BF16), ("mixed", BF16), ("half", FP16)]


@pytest.mark.parametrize(
    ("name", "inputs", "half"),
    [
        (name, inputs, half)
        for name in rules.CASES | MORE
        for inputs, half in INPUTS
        if name not in REFUSED or inputs == "single"
    ],
    indirect=["half"],
    ids=str,
)
def test_rule(name, inputs, half, constants):
    x = draw(2, 4, 6, dtype=torch.float32 if inputs == "single" else half).requires_grad_()
    y = draw(2, 4, 6, dtype=half if inputs == "half" else torch.float32).requires_grad_()
    assert_like_plain((rules.CASES | MORE)[name], x, y)


PRESETS = {  # each backbone once
    (path.parent.name, str(read_yaml(path).get("backbone"))): path
    for path in sorted((ROOT / "configs").glob("*/*.yaml"))
}
SMALL = {"depth": 1, "width": 16, "heads": 1}
FEW = {"transformer": {"depth": 2}, "unet": {"blocks": 1}}  # more of them have no other dtypes


def configured(modality, *words):
    """The modality, its configuration, and the shape and the conditions of its shipped samples."""
    described, _ = read(ROOT / "checkpoints" / modality / "student.safetensors")
    spec, config = load([f"modality={modality}", *words])
    return spec, config, described["shape"], schema_from_dict(described["condition"], spec.fields)


def small(shape, schema, **options):
    return backbones.build(BackboneConfig("transformer", options=options), shape, schema)


def nulls(schema, n=2):
    return {key: field.null(n).to("cuda") for key, field in schema.items()}


def of_presets():
    """Each backbone as either network; of those that are run every time, few are large."""
    for preset in PRESETS.values():
        for name in NETWORKS:
            for half in (BF16, FP16):
                fast = preset.stem == "smoke" or (preset.stem, name) == ("gpu", "unet")
                marks = [] if fast and half is BF16 else [pytest.mark.slow]
                case = f"{preset.parent.name}-{preset.stem}-{name}-{half}"
                yield pytest.param(preset, name, half, id=case, marks=marks)


@pytest.mark.parametrize(("preset", "name", "half"), [*of_presets()], indirect=["half"])
def test_backbone_of_a_preset(preset, name, half):
    spec, config, shape, schema = configured(preset.parent.name, f"preset={preset}")
    own = config.backbone.options if name == config.backbone.name else {}
    config.backbone.name, config.backbone.options = name, {**own, **FEW[name]}
    network = spec.backbone(config, shape, schema, {}).to("cuda")
    assert_like_plain(network, draw(2, *shape), draw(2), condition=nulls(schema))


@pytest.mark.parametrize("name", ["transformer", pytest.param("unet", marks=pytest.mark.slow)])
def test_a_student_compiles_as_one_graph_with_the_kernel(name, monkeypatch):
    monkeypatch.setattr(flash, "room", lambda index: 1 << 20)  # bytes of a card with enough
    shape, schema, graphs = (1, 8, 8), {"label": Label(3)}, []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    with fake_cuda(BF16, guarded=False):
        network = backbones.build(BackboneConfig(name, options=FEW[name]), shape, schema)
        compiled = torch.compile(network.to("cuda"), fullgraph=True, dynamic=False, backend=backend)
        x, t = draw(2, *shape), draw(2)
        F, dF = jvp(compiled, (x, t), (x, t), condition=nulls(schema))
    (graph,) = graphs
    assert F.dtype == dF.dtype == BF16
    assert any("attention_tangent" in str(node.target) for node in graph.graph.nodes)


@pytest.mark.parametrize("half", EVERY_TIME, indirect=True, ids=str)
def test_factorised_attention(half):
    options = {**SMALL, "depth": 2, "attention": "factorised"}
    network = small((2, 4, 4, 4), {}, **options).to("cuda")
    assert_like_plain(network, draw(2, 2, 4, 4, 4), draw(2))


STUDENTS = {
    "endpoint": ["student.phases=[{endpoint: 1, steps: 1}]"],
    "consistency": ["student.phases=[{consistency: 1, steps: 1}]"],
    "score": [
        "student.phases=[{consistency: 1, distribution_matching: 1, steps: 1}]",
        "student.tangent=difference",
    ],
    "discrete": ["student.phases=[{discrete_consistency: 1, flow_anchor: 1, steps: 1}]"],
}


@pytest.mark.parametrize("half", EVERY_TIME, indirect=True, ids=str)
@pytest.mark.parametrize("name", ["teacher", *STUDENTS])
def test_training_step(name, half):
    words = STUDENTS.get(name, [])
    _, config, shape, schema = configured("image", "preset=smoke", *words)
    networks = [small(shape, schema, **SMALL) for _ in range(2)]
    if name == "teacher":
        stage = stages.teacher(networks[0], schema, config.teacher).to("cuda")
    else:
        bounds = torch.full((1, 1, 1), -1.0), torch.ones(1, 1, 1)
        stage = stages.student(networks[0], schema, config.student, networks[1], bounds).to("cuda")
        stage.on_fit_start()
    loss = stage.training_step(Batch(draw(4, *shape), nulls(schema, 4)), 0)
    assert loss.device.type == "cuda" and loss.dtype == torch.float32
    assert loss.requires_grad and stage.monitored.device.type == "cuda"


@pytest.mark.parametrize("half", EVERY_TIME, indirect=True, ids=str)
@pytest.mark.parametrize("name", ["consistency", *sampling.ODE_SAMPLERS])
def test_sampler(name, half):
    shape, schema = (1, 8, 8), {"label": Label(3)}
    network = small(shape, schema, **SMALL).to("cuda")
    noise = draw(2, *shape)
    x = sampling.sampler(name, 3, SIGMA_DATA, 2.0, schema)(network, noise, nulls(schema))
    assert (x.dtype, x.shape, x.device) == (noise.dtype, noise.shape, noise.device)


@pytest.mark.parametrize("where", [None, "cpu"])
def test_average(where, half):
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1).to(half))
    network = network.to("cuda")
    average = PowerEMA(network.state_dict(), 0.1, where)
    average.update()
    for key, value in network.state_dict().items():
        kept = average.average[key]
        assert (kept.dtype, kept.shape) == (value.dtype, value.shape)
        assert kept.device.type == (where or "cuda")


def dit(diffusers):
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8
    )
    labels = torch.zeros(2, dtype=torch.long, device="cuda")
    return network, lambda net, x, t: net(x, t, labels)


def sd3(diffusers):
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return network, lambda net, x, t: net(x, draw(2, 4, 8), draw(2, 8), t)


def flux(diffusers):
    network = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )

    def call(net, x, t):
        tokens = x.flatten(2).mT
        places = [torch.zeros(n, 3, device="cuda") for n in (4, tokens.shape[1])]
        return net(tokens, draw(2, 4, 8), draw(2, 8), t, txt_ids=places[0], img_ids=places[1])

    return network, call


@pytest.mark.parametrize("half", EVERY_TIME, indirect=True, ids=str)
@pytest.mark.parametrize("build", [dit, sd3, flux])
def test_network_of_diffusers(build, half):
    network, call = build(pytest.importorskip("diffusers"))
    network.to("cuda").eval()
    assert_like_plain(lambda x, t: call(network, x, t).sample, draw(2, 4, 8, 8), draw(2))


# What the guard itself says.


class Small(nn.Module):
    """An RMS norm and attention as the core's layers have them, on tokens (B, N, 8)."""

    def __init__(self):
        super().__init__()
        self.linear, self.gain = nn.Linear(8, 8), nn.Parameter(torch.ones(8))

    def forward(self, x):
        x = self.linear(x)
        x = F.rms_norm(x, (8,), self.gain.to(x.dtype))
        return F.scaled_dot_product_attention(x, x, x)


def rms_norm_by_a_gain_in_half(x, shape, weight=None, eps=None):
    """It is in single precision, as autocast has it on a card, but its gain is not."""
    y = aten._fused_rms_norm(x.primal.float(), shape, weight, eps)[0]
    return Dual(y, x.tangent.to(y.dtype))


def attention_under_autocast(query, key, value):
    """The softmax of its tangent is raised to single precision, what it is multiplied by is not."""
    out = F.scaled_dot_product_attention(query.primal, key.primal, value.primal)
    with torch.no_grad():
        p = torch.softmax(query.primal.to(out.dtype) @ key.primal.mT.to(out.dtype), -1)
        return Dual(out, torch.empty_like(out).baddbmm_(p, value.tangent.to(out.dtype)))


@pytest.mark.parametrize(
    ("function", "fault", "operation"),
    [
        (F.rms_norm, rms_norm_by_a_gain_in_half, "_fused_rms_norm"),
        (F.scaled_dot_product_attention, attention_under_autocast, "baddbmm_"),
    ],
)
def test_a_faulty_rule_is_found(function, fault, operation, half, monkeypatch):
    network = Small().to("cuda")
    assert_like_plain(network, draw(2, 4, 8))
    monkeypatch.setitem(RULES, function, fault)
    with pytest.raises(MixedDtypes, match=operation):
        assert_like_plain(network, draw(2, 4, 8))


# Functions of x in single and h in half precision, both (2, 6, 6).
MIXTURES = {
    "mm": lambda x, h: torch.mm(x[0], h[0]),
    "bmm": lambda x, h: torch.bmm(x, h),
    "baddbmm": lambda x, h: torch.baddbmm(h, x, x),
    "addmm": lambda x, h: F.linear(h[0], h[0], x[0, 0]),
    "attention": lambda x, h: F.scaled_dot_product_attention(h, x, h),
    "convolution": lambda x, h: F.conv1d(h, x),
    "bias of a convolution": lambda x, h: F.conv1d(h, h, x[0, 0]),
    "layer norm": lambda x, h: F.layer_norm(h, (6,), x[0, 0]),
    "layer norm of single": lambda x, h: F.layer_norm(x, (6,), h[0, 0]),
    "group norm": lambda x, h: F.group_norm(h, 2, x[0, 0]),
    "rms norm": lambda x, h: aten._fused_rms_norm(x, (6,), h[0, 0], None),
    "softmax backward": lambda x, h: aten._softmax_backward_data(x, h, -1, h.dtype),
    "layer norm backward": lambda x, h: aten.native_layer_norm_backward(
        x, h, (6,), x[..., :1], x[..., :1], None, None, [True, False, False]
    ),
    "lerp": lambda x, h: torch.lerp(x, h, 0.5),
}
PROMOTED = {
    "pointwise": lambda x, h: torch.addcmul(x * h, h, x) + torch.where(x > h, x, h),
    "in place": lambda x, h: h.clone().mul_(x).copy_(x),
    "cat": lambda x, h: torch.cat([x, h]) + torch.stack([x, h]).flatten(0, 1),
    "statistics": lambda x, h: aten.native_layer_norm_backward(
        h, h, (6,), x[..., :1], x[..., :1], h[0, 0], None, [True, False, False]
    ),
    "batch norm": lambda x, h: F.batch_norm(h, x[0, 0], x[0, 0], x[0, 0], x[0, 0]),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_card_refuses(name, half):
    with torch.autocast("cuda", enabled=False), pytest.raises(RuntimeError, match="dtype|float"):
        MIXTURES[name](draw(2, 6, 6), draw(2, 6, 6, dtype=half))


@pytest.mark.parametrize("name", PROMOTED)
def test_a_card_takes(name, half):
    with torch.autocast("cuda", enabled=False):
        PROMOTED[name](draw(2, 6, 6), draw(2, 6, 6, dtype=half))


def test_autocast_is_switched_as_on_a_card(half):
    x = draw(6, 6)
    assert (x @ x).dtype == half and x.softmax(-1).dtype == torch.float32
    with torch.autocast("cuda", enabled=False):
        assert (x @ x).dtype == torch.float32
        with torch.autocast("cuda", half):
            assert (x @ x).dtype == half
    assert (x @ x).dtype == half


def test_devices_do_not_mix(half):
    with pytest.raises(RuntimeError, match="two different devices"):
        draw(3) + torch.ones(3)


def test_nothing_is_left_behind():
    with pytest.raises(ValueError), fake_cuda(BF16):
        raise ValueError
    assert not torch.is_autocast_enabled("cuda")
    assert type(torch.ones(1)) is torch.Tensor
