"""Condition fields of a plugin's own kind, which no file of the core knows."""

import json
from dataclasses import dataclass, replace

import prompts_plugin
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from scm_core.apps import export, sample
from scm_core.apps.serving.http import condition_type
from scm_core.base.errors import UserError
from scm_core.contract.fields import Vector, parse_condition, schema_from_dict, schema_to_dict
from scm_core.data import provenance
from scm_core.engine import checkpoint, run
from scm_core.testing import check_modality

PLUGIN = "modality=prompts_plugin:SPEC"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """One that was trained for two steps, and its teacher."""
    out = tmp_path_factory.mktemp("prompts") / "run"
    run.main([PLUGIN, f"out={out}", "max_steps=2"])
    return out / "student.safetensors"


def prompts(folder):
    return [provenance.read(path)["prompt"] for path in sorted(folder.glob("0*.png"))]


def test_a_prompt_is_asked_for_and_noted_in_words(student, tmp_path):
    words = [PLUGIN, f"checkpoint={student}", "n=2", f"out={tmp_path}"]
    sample.main([*words, "condition.prompt=late falling early"])
    assert prompts(tmp_path) == ["late falling early"] * 2
    sample.main([*words, "prompt=rising"])
    assert prompts(tmp_path) == ["rising"] * 2
    with pytest.raises(UserError, match="is not 1 to 3 of rising, falling, early, late"):
        sample.main([*words, "prompt=sideways"])


def test_what_is_not_given_are_held_out_prompts(student, tmp_path):
    sample.main([PLUGIN, f"checkpoint={student}", "n=3", f"out={tmp_path}"])
    assert all(len(prompt.split()) == 2 for prompt in prompts(tmp_path))


def test_the_kind_survives_the_checkpoint(student):
    model = checkpoint.load(student, "prompts_plugin:SPEC")
    field = model.condition["prompt"]
    assert type(field) is prompts_plugin.Prompt
    assert field == replace(prompts_plugin.PROMPT, examples=field.examples) and field.examples
    x, t = torch.randn(2, 2, 16), torch.full((2,), 1.0)
    one, other = (parse_condition(model.condition, {"prompt": p}, 2) for p in ("early", "late"))
    assert not torch.equal(model.backbone(x, t, one), model.backbone(x, t, other))


def test_a_student_of_sequences_is_a_graph_of_any_batch(student, tmp_path, capsys):
    out = tmp_path / "student.pt2"
    export.main([PLUGIN, f"checkpoint={student}", "format=torch", f"out={out}"])
    assert "relative error" in capsys.readouterr().out and out.exists()


def test_the_kind_conforms():
    conformance = check_modality(prompts_plugin.SPEC)
    assert not {"condition", "config round trip", "tangent", "rules", "reload"} & {
        *conformance.failed()
    }, str(conformance)


def test_a_server_describes_and_reads_it():
    asked = TypeAdapter(condition_type(prompts_plugin.PROMPT))
    assert asked.json_schema()["pattern"] == "[a-z ]+"
    assert asked.validate_python("early late") == "early late"
    with pytest.raises(ValidationError, match="is not 1 to 3 of"):
        asked.validate_python("sideways")


@dataclass(frozen=True)
class Colour(Vector):
    """Three numbers with a number of the plugin's own."""

    gamma: float = 1.0


def test_a_kind_that_derives_from_a_vector_comes_back_as_itself():
    schema = {"colour": Colour(3, 2.2, examples=((0.5, 0.25, 1.0),))}
    plain = json.loads(json.dumps(schema_to_dict(schema)))
    assert schema_from_dict(plain, (Colour,)) == schema != {"colour": Colour(3, 2.2)}
    with pytest.raises(UserError, match="of the kind colour, which is none of label, vector"):
        schema_from_dict(plain)
