"""LoRA students of pretrained models of diffusers, whose weights no file of the run holds."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_pretrained_teacher import dit, load, train  # noqa: F401

from scm_core.base.errors import UserError
from scm_core.engine.storage import adapted, read
from scm_core.networks import lora
from scm_core.networks.pretrained import time

pytest.importorskip("peft")

LORA = ["data.size=16", "student.lora.rank=2"]
DEEP = "student.phases=[{consistency: 1, distribution_matching: 1, steps: 2}]"


def evaluated(backbone):
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.4, 1.2])
    with torch.no_grad():
        return backbone(x, t, {"label": torch.arange(2)})


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_adapter_of_a_pretrained_model_is_all_that_is_kept(tmp_path, dit):  # noqa: F811
    out = train(tmp_path, dit, *LORA, DEEP)
    described, weights = read(out / "student.safetensors")
    assert all(".lora_" in key and key.startswith("network.") for key in weights)
    teacher = load(out / "teacher.safetensors", dit).backbone
    student = load(out / "student.safetensors", dit).backbone
    assert student.state_dict().keys() == teacher.state_dict().keys()
    before, on = evaluated(teacher), []
    slowed = time.slow_while(
        on, teacher, torch.zeros(1, 4, 8, 8), {"label": torch.zeros(1, dtype=torch.long)}
    )
    unmerged = lora.Adapters(teacher, 2, on=on, slowed=slowed).new()
    unmerged.load_state_dict(weights)
    torch.testing.assert_close(evaluated(student), evaluated(unmerged), rtol=1e-4, atol=1e-5)
    assert not torch.equal(evaluated(student), before)
    with torch.no_grad():
        next(teacher.parameters()).add_(1)
    with pytest.raises(UserError, match="a LoRA of another teacher"):
        adapted(teacher.state_dict(), weights, described["lora"], out)


def test_a_file_that_lies_of_its_samples_makes_nothing_large(tmp_path, dit):  # noqa: F811
    out = train(tmp_path, dit, *LORA)
    with safe_open(out / "student.safetensors", "pt") as file:
        weights, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    assert json.loads(about["lora"])["slow"]
    save_file(weights, out / "student.safetensors", {**about, "shape": "[4, 100000, 100000]"})
    with pytest.raises(UserError, match="is too large for"):
        load(out / "student.safetensors", dit)


def test_merging_what_has_no_adapter_is_nothing(tmp_path, dit):  # noqa: F811
    out = train(tmp_path, dit, "data.size=16", "student.lora.merge=true")
    assert load(out / "student.safetensors", dit).step == 2


def test_it_may_be_merged(tmp_path, dit):  # noqa: F811
    out = train(tmp_path, dit, *LORA, "student.lora.merge=true")
    weights = read(out / "student.safetensors")[1]
    student = load(out / "student.safetensors", dit)
    assert {*weights} == {*load(out / "teacher.safetensors", dit).backbone.state_dict()}
    assert student.step == 2
    apart = train(tmp_path / "apart", dit, *LORA)
    known = evaluated(load(apart / "student.safetensors", dit).backbone)
    torch.testing.assert_close(evaluated(student.backbone), known, rtol=1e-2, atol=1e-2)
