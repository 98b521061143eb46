"""Conditions that are sequences: packed values, cross-attention, masks, and an exact tangent."""

import json

import pytest
import torch
from fake_cuda import assert_like_plain, draw, fake_cuda

from scm_core import UserError, dual
from scm_core.contract.fields import Label, Tokens, drop_condition, schema_from_dict, schema_to_dict
from scm_core.contract.fields import parse_condition as parse
from scm_core.contract.spec import Batch
from scm_core.engine import sharding
from scm_core.networks import backbones
from scm_core.networks.backbones import BackboneConfig

TEXT, POOLED = Tokens(5, 3), Tokens(4, 2, pooled=6)
SCHEMA = {"label": Label(3), "text": TEXT, "more": POOLED}
NETWORKS = ["transformer", "unet"]


def make(name, schema=SCHEMA, shape=(1, 8, 8), std=0.05):
    torch.manual_seed(0)
    net = backbones.build(BackboneConfig(name=name), shape, schema)
    for parameter in net.parameters():  # F starts at zero; a random one shows dependence
        torch.nn.init.normal_(parameter, std=std)
    return net


def batch(n=3, shape=(1, 8, 8)):
    """Sequences of another length in each sample."""
    mask = torch.arange(5) <= torch.arange(n)[:, None]
    text = TEXT.pack(torch.randn(n, 5, 3), mask)
    more = POOLED.pack(torch.randn(n, 2, 2), pooled=torch.randn(n, 6))
    condition = {"label": torch.arange(n) % 3, "text": text, "more": more}
    return torch.randn(n, *shape), torch.rand(n) * 1.5, condition


def test_packed_parts_come_back():
    tokens, pooled = torch.randn(2, 3, 2), torch.randn(2, 6)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    found = POOLED.unpack(POOLED.pack(tokens, mask, pooled))
    assert torch.equal(found.pooled, pooled) and found.tokens.shape == (2, 4, 2)
    assert found.mask.tolist() == [[True, False, True, False], [True, True, True, False]]
    assert torch.equal(found.tokens[:, :3][mask], tokens[mask])
    assert not found.tokens[~found.mask].any()
    assert not POOLED.unpack(POOLED.null(2)).mask.any()


@pytest.mark.parametrize(
    ("field", "given"),
    [
        (TEXT, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        (POOLED, {"tokens": [[1.0, -2.0]], "pooled": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}),
    ],
)
def test_what_is_written_is_shown_again(field, given):
    for asked in (given, json.dumps(given)):  # as a request has it, and as a command line
        value = parse({"text": field}, {"text": asked}, 2)["text"]
        field.validate(value)
        assert field.show(value[1]) == given


@pytest.mark.parametrize(
    "text",
    ["", "a", "[]", "[1,2,3]", "[[1,2]]", "[[1,2,3]" + ",[1,2,3]" * 5 + "]", "[[1,2,NaN]]", "{}"],
)
def test_what_is_no_sequence_is_refused(text):
    with pytest.raises(UserError, match="is not 1 to 5 tokens of 3"):
        TEXT.parse(text)
    with pytest.raises(UserError, match="and 6 numbers as pooled"):
        POOLED.parse("[[1,2]]")
    with pytest.raises(UserError, match="no token"):
        TEXT.validate(TEXT.null(2))


@pytest.mark.parametrize("sizes", [{"length": 0}, {"width": -1}, {"pooled": -1}, {"width": "a"}])
def test_a_checkpoint_may_not_describe_what_cannot_be(sizes):
    with pytest.raises((ValueError, TypeError)):
        schema_from_dict({"text": {"kind": "tokens", "length": 2, "width": 2, **sizes}})


def test_a_checkpoint_keeps_sequences_and_their_examples():
    examples = batch()[2]["text"]
    schema = {**SCHEMA, "text": TEXT.with_examples(examples)}
    found = schema_from_dict(json.loads(json.dumps(schema_to_dict(schema))))
    assert found == schema
    assert torch.equal(parse(found, {}, 4)["text"], examples[[0, 1, 2, 0]])


@pytest.mark.parametrize("shape", [(2, 16), (1, 8, 8), (2, 4, 4, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_tangent_is_that_of_autodiff_and_no_rule_is_missing(name, shape):
    x, t, condition = batch(shape=shape)
    net = make(name, shape=shape)
    report = dual.verify(net, Batch(0.5 * x, condition))
    assert report.ok and not report.fallbacks, str(report)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_may_compute_their_activations_again(name):
    x, t, condition = batch()
    found = []
    for change in (lambda net: None, sharding.recompute):
        net = make(name)
        change(net)
        ones = torch.ones_like(x), torch.ones_like(t)
        F, dF = dual.jvp(net, (x, t), ones, condition=condition)
        F.square().sum().backward()
        found.append([F, dF, *(parameter.grad for parameter in net.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_tokens_have_no_influence_and_others_have(name):
    net, (x, t, condition) = make(name), batch()
    tokens, mask, _ = TEXT.unpack(condition["text"])
    spoilt = torch.cat([mask.float(), torch.where(mask[..., None], tokens, 1e3).flatten(1)], 1)
    F = net(x, t, condition)
    torch.testing.assert_close(net(x, t, {**condition, "text": spoilt}), F)
    for changed in (TEXT.pack(tokens + 1, mask), TEXT.pack(tokens), TEXT.null(3)):
        assert (net(x, t, {**condition, "text": changed}) - F).abs().amax((1, 2, 3)).max() > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_tells_tokens_apart_that_have_one_mean(name):
    """The pooled path alone could not."""
    field = Tokens(2, 2)
    net, (x, t, _) = make(name, {"text": field}, std=0.2), batch()
    one, other = (field.pack(torch.tensor(v).expand(3, 2, 2)) for v in ([[1.0, 0], [0, 1]], 0.5))
    assert (net(x, t, {"text": one}) - net(x, t, {"text": other})).abs().max() > 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_no_condition_is_the_null_one_which_guidance_needs(name):
    net, (x, t, condition) = make(name), batch()
    nulls = {key: field.null(3) for key, field in SCHEMA.items()}
    F_null, F = net(x, t, None), net(x, t, condition)
    assert F_null.isfinite().all()
    torch.testing.assert_close(net(x, t, nulls), F_null, rtol=0, atol=0)
    both = {key: torch.cat([nulls[key], condition[key]]) for key in SCHEMA}
    together = net(x.repeat(2, 1, 1, 1), t.repeat(2), both)
    torch.testing.assert_close(together, torch.cat([F_null, F]), rtol=1e-4, atol=1e-5)
    dropped = drop_condition(SCHEMA, condition, 1.0)
    assert all(torch.equal(dropped[key], nulls[key]) for key in SCHEMA)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_sequences_has_no_parameter_for_them(name):
    names = {*make(name, {"label": Label(3)}).state_dict()}
    more = {*make(name, {"label": Label(3), "text": TEXT}).state_dict()} - names
    assert not any("cross" in one or "context" in one for one in names)
    assert all("cross" in one or "context" in one or "fields.text" in one for one in more)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_network_starts_at_zero(name):
    net = backbones.build(BackboneConfig(name=name), (1, 8, 8), SCHEMA)
    assert net(*batch()).abs().max() == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card says it itself")
@pytest.mark.parametrize("name", NETWORKS)
def test_dtypes_under_autocast_of_a_card(name):
    with fake_cuda(torch.bfloat16):
        net = make(name).to("cuda")
        condition = {key: field.null(2).to("cuda") for key, field in SCHEMA.items()}
        assert_like_plain(net, draw(2, 1, 8, 8), draw(2), condition=condition)
