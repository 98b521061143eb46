"""Conditions that are vectors: what is drawn where none is given, and how one is."""

import json

import pairs_plugin
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scm_core.apps import sample
from scm_core.base.errors import UserError
from scm_core.contract.fields import Label, Vector, with_examples
from scm_core.data import provenance
from scm_core.engine import checkpoint, run, sampling

PLUGIN = "modality=pairs_plugin:SPEC"
STEPS = ("max_steps=2", "student.options.consistency.tangent_warmup=1", "trainer.preview_every=2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory, the conditions of its previews, and what its backbones were built by."""
    out, drawn, sampler = tmp_path_factory.mktemp("pairs") / "run", [], sampling.sampler

    def watched(*which, **more):
        draw = sampler(*which, **more)

        def drawing(model, noise, condition, *rest):
            drawn.append(condition["place"])
            return draw(model, noise, condition, *rest)

        return drawing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "sampler", watched)
        patch.setattr(pairs_plugin, "STATISTICS", [])
        run.main([PLUGIN, f"out={out}", *STEPS])
        return out, drawn, pairs_plugin.STATISTICS


def held_out():
    return {tuple(row) for row in pairs_plugin.read("test")[1]["place"].tolist()}


def test_previews_are_of_held_out_vectors(trained):
    _, drawn, _ = trained
    assert len(drawn) == 2
    for place in drawn:
        rows = {tuple(row) for row in place.tolist()}
        assert len(rows) == 16 and rows <= held_out()


def stated(folder):
    return [provenance.read(path)["place"] for path in sorted(folder.glob("0*.png"))]


def test_samples_are_of_held_out_vectors_unless_one_is_given(trained, tmp_path):
    words = [PLUGIN, f"checkpoint={trained[0]}/student.safetensors", "n=3", f"out={tmp_path}"]
    sample.main(words)
    assert {tuple(place) for place in stated(tmp_path)} <= held_out()
    sample.main([*words, "place=-0.5,0.25"])
    assert stated(tmp_path) == [[-0.5, 0.25]] * 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0,0", "stands for no condition"),
        ("1", "2 comma-separated"),
        ("nan,1", "2 comma-separated"),
        ("1e39,1", "2 comma-separated"),
    ],
)
def test_a_vector_that_will_not_do_is_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        Vector(2).parse(text)


def stating(source, path, **place):
    """A checkpoint like another, whose condition `place` is described so."""
    with safe_open(source / "student.safetensors", "pt") as file:
        described = file.metadata()
    described["condition"] = json.dumps({"place": {"kind": "vector", "size": 2, **place}})
    save_file(load_file(source / "student.safetensors"), path, described)
    return path


def test_a_student_without_examples_is_not_asked_for_the_null(trained, tmp_path):
    path = stating(trained[0], tmp_path / "old.safetensors")
    with pytest.raises(UserError, match="give condition.place=NUMBER"):
        sample.main([PLUGIN, f"checkpoint={path}", "n=1", f"out={tmp_path}"])


@pytest.mark.parametrize("examples", [[[1.0]], [[1.0, float("inf")]], ["a", "b"], [1.0, 2.0], 5])
def test_a_checkpoint_with_odd_examples_is_refused(trained, tmp_path, examples):
    path = stating(trained[0], tmp_path / "odd.safetensors", examples=examples)
    with pytest.raises(UserError):
        checkpoint.load(path, "pairs_plugin:SPEC")


def test_what_belongs_together_goes_in_turn_together():
    schema = {"label": Label(3), "place": Vector(1)}
    given = {"label": torch.tensor([2, 0]), "place": torch.tensor([[2.0], [0.5]])}
    condition = sampling.cycled_condition(with_examples(schema, given), 3)
    assert condition["label"].tolist() == [2, 0, 2]
    assert condition["place"].tolist() == [[2.0], [0.5], [2.0]]


def test_the_backbone_is_built_by_the_statistics_wherever_it_is(trained):
    out, _, given = trained
    data = pairs_plugin.SPEC.build_data(None)
    data.setup()
    assert len(given) >= 3 and all(one == data.statistics for one in given)
    pairs_plugin.STATISTICS.clear()
    checkpoint.load(out / "student.safetensors", "pairs_plugin:SPEC")
    assert all(one == data.statistics for one in pairs_plugin.STATISTICS)
