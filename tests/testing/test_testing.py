"""The conformance suite: every built-in plugin passes it, and each planted fault is found."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn
from toy_plugin import SPEC, ToyCodec, ToyConfig, ToyData, ToyFeatures, ToySet

from scm_core import testing
from scm_core.apps import check
from scm_core.base import console
from scm_core.base.arguments import parse
from scm_core.base.errors import UserError
from scm_core.contract import spec
from scm_core.contract.fields import Label
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.engine import config
from scm_core.evaluation import classifier
from scm_core.networks import backbones
from scm_core.networks.backbones import BackboneConfig
from scm_core.testing import Fault, check_modality, network, prepare, seeded

BUILT_IN = [entry.name for entry in spec.installed() if entry.value.startswith("modalities.")]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_plugins_conform(name, fashion_root, monkeypatch):
    # Training the scorers takes minutes, and how well they score is no matter here.
    monkeypatch.setattr(classifier, "trained", lambda build, *_, **__: build().eval())
    words = [f"data.root={fashion_root}"] if name in ("image", "video") else []
    report = check_modality(spec.get(name), f"modality={name}", "preset=smoke", *words)
    assert report.ok, str(report)


def test_the_toy_conforms_and_no_global_state_is_left_behind():
    before = torch.get_rng_state()
    report = check_modality(SPEC)
    assert report.ok and len(report.results) == 15, str(report)
    assert torch.equal(before, torch.get_rng_state())


@dataclass
class OwnBackbone(BackboneConfig):
    name: str = "own"
    size: str = "huge"


@dataclass
class OwnConfig(ToyConfig):
    backbone: OwnBackbone = field(default_factory=OwnBackbone)


def test_a_plugin_may_name_backbones_of_its_own(monkeypatch):
    monkeypatch.setattr(testing, "CHECKS", (testing.config_round_trip,))
    assert check_modality(replace(SPEC, config=OwnConfig, build_backbone=own_backbone)).ok


def own_backbone(config, shape, schema, statistics):
    assert config.backbone == OwnBackbone()
    return backbones.build(ToyConfig().backbone, shape, schema)


def with_data(**changes):
    """The toy with methods or attributes of its data module changed."""
    kind = type("Changed", (ToyData,), changes)
    return replace(SPEC, build_data=lambda config: kind())


def with_features(**named):
    """The toy with another extractor beside its own, by its name and what it gives."""
    kinds = [type("Changed", (ToyFeatures,), {"name": k, "__call__": v}) for k, v in named.items()]
    return replace(SPEC, build_features=lambda config: [ToyFeatures(), *(k() for k in kinds)])


def with_scores(scores):
    return replace(SPEC, build_scorer=lambda config, data: scores)


def with_codec(**changes):
    kind = type("Changed", (ToyCodec,), changes)
    return replace(SPEC, build_codec=lambda config, statistics: kind())


class Wrapped(nn.Module):
    """The toy's backbone F behind something."""

    def __init__(self, backbone):
        super().__init__()
        self.inner = backbone
        self.norm = nn.BatchNorm1d(1)
        self.noise = nn.Buffer(torch.randn(1, 16), persistent=False)

    def batch_norm(self, x, t, condition):
        return self.inner(self.norm(x), t, condition)

    def in_place(self, x, t, condition):
        return self.inner(x, t, condition).squeeze_(1).unsqueeze(1)

    def ignores_t(self, x, t, condition):
        return self.inner(x, torch.ones_like(t), condition)

    def fast_t(self, x, t, condition):
        return self.inner(x, 1000 * t, condition)

    def fast_t_behind_a_factor(self, x, t, condition):
        return x * t.cos().view(-1, 1, 1) + 0.1 * self.inner(x, 1000 * t, condition)

    def index_of_t(self, x, t, condition):
        return self.inner(x, (1000 * t).floor(), condition)

    def kinks(self, x, t, condition):
        return (self.inner(x, t, condition) - 0.3 * x).abs() + x.relu() * t.view(-1, 1, 1)

    def cancelling(self, x, t, condition):
        return (self.inner(x, t, condition) + 100) - 100

    def without_rule(self, x, t, condition):
        for _ in range(40):
            x = nn.functional.hardswish(x)
        return self.inner(x, t, condition)

    def noisy(self, x, t, condition):
        return self.inner(x + 0.1 * torch.randn(x.shape), t, condition)

    def unregistered(self, x, t, condition):
        return self.inner(x + self.noise, t, condition)

    def detached(self, x, t, condition):
        return self.inner(x, t, condition).detach() * self.norm.weight.mean()

    def nan(self, x, t, condition):
        return self.inner(x, t, condition) * math.nan

    def gradient_of_nan(self, x, t, condition):
        return self.inner(x, t, condition) + (0 * self.norm.weight).square().sum().sqrt()


def with_backbone(forward):
    kind = type("Changed", (Wrapped,), {"forward": getattr(Wrapped, forward)})
    return replace(
        SPEC,
        build_backbone=lambda config, shape, schema, statistics: kind(
            backbones.build(config.backbone, shape, schema)
        ),
    )


class OfStdOne(ToySet):
    def __getitems__(self, indices):
        x, condition = super().__getitems__(indices)
        return Batch(x / SIGMA_DATA, condition)


class OfAnotherType(ToySet):
    def __getitems__(self, indices):
        x, condition = super().__getitems__(indices)
        return Batch(x.double(), condition)


class WithAKey(ToySet):
    def __getitems__(self, indices):
        x, condition = super().__getitems__(indices)
        return Batch(x, {**condition, "loudness": torch.ones(len(x))})


class WithAnInputOfTheExport(ToySet):
    def __getitems__(self, indices):
        x, condition = super().__getitems__(indices)
        return Batch(x, {"noise": condition["pitch"]})


class WithNullLabels(ToySet):
    def __getitems__(self, indices):
        x, condition = super().__getitems__(indices)
        return Batch(x, {"pitch": condition["pitch"] + 1})


class WithNaN(ToySet):
    def __init__(self, n, seed):
        super().__init__(n, seed)
        self.waves[-1] = math.nan


class DrawnGlobally(ToySet):
    def __init__(self, n, seed):
        super().__init__(n, seed)
        self.waves = self.waves + 0.01 * torch.randn(self.waves.shape)


class WithALambda(ToySet):
    def __init__(self, n, seed):
        super().__init__(n, seed)
        self.transform = lambda x: x


def shuffled(self, split):
    for media, condition in ToyData.real(self, split):
        yield media.flip(0), {"pitch": condition["pitch"].flip(0)}


FAULTS = {
    "data of std 1.0": (with_data(dataset=OfStdOne), "statistics", "std 0.5"),
    "data with a NaN": (with_data(dataset=WithNaN), "statistics", "std 0.5"),
    "a backbone that ignores t": (with_backbone("ignores_t"), "time embedding", "ignores t"),
    "a BatchNorm": (with_backbone("batch_norm"), "tangent", "batch"),
    "a shape changed in place": (with_backbone("in_place"), "tangent", "writes in place"),
    "an embedding of 1000 t": (with_backbone("fast_t"), "time embedding", "not 1000 t"),
    "a decoder that clips": (
        with_codec(decode=lambda self, x: ToyCodec().decode(x).clamp(-0.5, 0.5)),
        "round trip",
        "clips real data",
    ),
    "a lossy codec that clips": (
        with_codec(exact=False, decode=lambda self, x: ToyCodec().decode(x).clamp(-0.9, 0.9)),
        "round trip",
        "clips real data",
    ),
    "an exact codec that decodes to NaN": (
        with_codec(decode=lambda self, x: ToyCodec().decode(x) * math.nan),
        "round trip",
        "decode has to undo encode",
    ),
    "a lossy codec that encodes to NaN": (
        with_codec(exact=False, encode=lambda self, waves: ToyCodec().encode(waves) * math.nan),
        "round trip",
        "decode has to undo encode",
    ),
    "a condition key that the schema lacks": (
        with_data(dataset=WithAKey),
        "condition",
        "needs a field in the schema",
    ),
    "a condition that an export has an input for": (
        with_data(dataset=WithAnInputOfTheExport, condition={"noise": Label(2)}),
        "condition",
        "call it otherwise",
    ),
    "data from the global generator": (
        with_data(dataset=DrawnGlobally),
        "global generator",
        "a generator of your own",
    ),
    "a backbone that draws": (with_backbone("noisy"), "global generator", "generator"),
    "a decoder that draws": (
        with_codec(decode=lambda self, x: ToyCodec().decode(x) + 1e-4 * torch.randn(x.shape)),
        "global generator",
        "generator",
    ),
    "an op without a rule": (with_backbone("without_rule"), "rules", "scm_core.dual.rule"),
    "x in float64": (with_data(dataset=OfAnotherType), "shapes", "float32"),
    "labels that are null": (with_data(dataset=WithNullLabels), "condition", "no null"),
    "real media in another order": (with_data(real=shuffled), "round trip", "the order of val"),
    "another standardisation": (
        with_codec(decode=lambda self, x: x),
        "round trip",
        "decode has to undo encode",
    ),
    "a data set with a lambda": (with_data(dataset=WithALambda), "pickling", "no lambdas"),
    "a buffer that is not saved": (with_backbone("unregistered"), "reload", "persistent buffers"),
    "statistics that are no JSON": (
        with_data(statistics={"std": torch.ones(1)}),
        "reload",
        "travel as JSON",
    ),
    "a sum that bf16 cannot hold": (with_backbone("cancelling"), "bf16", "float32"),
    "NaN in bf16": (with_backbone("nan"), "bf16", "float32"),
    "NaN once it is reloaded": (with_backbone("nan"), "reload", "persistent buffers"),
    "a gradient of NaN": (with_backbone("gradient_of_nan"), "tangent", "not smooth"),
    "features that are not flat": (
        with_features(unflattened=lambda self, waves: waves),
        "evaluation",
        "(N, D)",
    ),
    "one row of features for all media": (
        with_features(mean=lambda self, waves: waves.mean(0)),
        "evaluation",
        "one row for each",
    ),
    "features of NaN": (
        with_features(roots=lambda self, waves: waves.flatten(1).sqrt()),
        "evaluation",
        "finite features",
    ),
    "features that draw": (
        with_features(noisy=lambda self, waves: torch.rand(len(waves), 2)),
        "evaluation",
        "eval mode",
    ),
    "two extractors of one name": (
        with_features(waves=lambda self, waves: waves.flatten(1)),
        "evaluation",
        "a name of its own",
    ),
    "one score for all media": (
        with_scores(lambda waves, condition: {"loudness": waves.abs().mean()}),
        "evaluation",
        "finite scores (N,)",
    ),
    "scores of NaN": (
        with_scores(lambda waves, condition: {"loudness": waves.mean((1, 2)).log()}),
        "evaluation",
        "finite scores (N,)",
    ),
    "a file whose place is not returned": (
        with_codec(save=lambda self, wave, path: None),
        "evaluation",
        "with a suffix",
    ),
    "a cut gradient": (with_backbone("detached"), "overfitting", "cut gradient"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, monkeypatch):
    spec, check_name, advice = FAULTS[name]
    alone = getattr(testing, check_name.replace(" ", "_"))
    monkeypatch.setattr(testing, "CHECKS", (alone,))
    report = check_modality(spec)
    assert report.failed() == [check_name], str(report)
    assert advice in report.results[0].advice and advice in str(report), str(report)


def found(check_of, spec, *words):
    """What one check says: its figure, or the fault."""
    command = parse(["modality=toy_plugin:SPEC", *words])
    with seeded(0):
        subject = prepare(spec, config.finish(spec, command))
        try:
            return check_of(subject)
        except Fault as fault:
            return fault


@pytest.mark.parametrize("forward", ["fast_t_behind_a_factor", "index_of_t"])
def test_a_fast_time_embedding_does_not_hide(forward):
    fault = found(network.time_embedding, with_backbone(forward))
    assert isinstance(fault, Fault) and "not 1000 t" in fault.advice


def test_a_network_with_kinks_passes():
    for check_of in (network.tangent, network.time_embedding):
        assert isinstance(figure := found(check_of, with_backbone("kinks")), str), figure.advice


def test_a_network_that_dual_refuses_is_checked_as_it_trains():
    spec = with_backbone("batch_norm")
    for check_of in (network.tangent, network.rules, network.bf16, network.time_embedding):
        figure = found(check_of, spec, "student.tangent=difference")
        assert isinstance(figure, str), figure.advice
    assert "student.tangent=difference" in found(network.tangent, spec).advice
    for forward in ("fast_t", "nan"):
        fault = found(network.tangent, with_backbone(forward), "student.tangent=difference")
        assert "too steep" in fault.advice


def test_what_lacks_a_package_is_named_and_passes():
    def lacking(config, data=None):
        raise UserError("pip install 'ears'")

    figure = found(testing.evaluation, replace(SPEC, build_features=lacking, build_scorer=lacking))
    assert figure == "not tried (pip install 'ears'), not tried (pip install 'ears'), 00000.png"
    scores = with_scores(lambda waves, condition: {"loudness": waves.abs().mean((1, 2))})
    assert found(testing.evaluation, scores) == "loudness, waves (8, 16), 00000.png"


def raising(self, media):
    raise RuntimeError("out of luck")


def test_an_exception_is_placed_and_points_above_only_where_something_failed(monkeypatch):
    monkeypatch.setattr(testing, "CHECKS", (testing.statistics, testing.round_trip))
    sound = with_codec(encode=raising)
    monkeypatch.setattr(sound.config, "__module__", __name__)
    (advice,) = (one.advice for one in check_modality(sound).results if not one.ok)
    line = raising.__code__.co_firstlineno + 1
    assert advice == f"raised in test_testing.py, line {line}: fix it there"
    faulty = replace(sound, build_data=with_data(dataset=OfStdOne).build_data)
    assert "fix what is named above first" in check_modality(faulty).results[1].advice


def test_an_op_without_a_rule_is_named_with_its_share():
    figure = found(network.rules, with_backbone("without_rule")).figure
    assert figure.startswith("hardswish ") and "% of a step" in figure


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["check", *words])
        with pytest.raises(SystemExit) as caught:
            console.run(check.main, check.__doc__)
        return caught.value.code, capsys.readouterr()

    return run


def test_the_command_says_what_it_measured(run):
    code, said = run("modality=toy_plugin:SPEC")
    assert code == 0 and said.out.count("\nok ") == 15 and not said.err


def test_the_command_says_what_to_change(run, monkeypatch):
    monkeypatch.setattr("toy_plugin.SPEC", with_data(dataset=OfStdOne))
    code, said = run("modality=toy_plugin:SPEC")
    assert code == 2 and "FAILED  statistics" in said.out
    assert "x = (data - mean) / std * SIGMA_DATA" in said.out
    assert said.err == "error: 2 of 15 checks failed\n"
