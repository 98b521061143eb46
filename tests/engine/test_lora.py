"""LoRA students: what is trained, kept and exported of them, and what they sample when merged."""

import copy
import json
import shutil
import sys

import pytest
import torch
from gaussian import Gaussian
from safetensors import safe_open
from safetensors.torch import load_file
from test_parallel import TOY, assert_close
from test_parallel import run as train

from scm_core import UserError
from scm_core.apps.sharing import hub
from scm_core.contract.objectives import Phase
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.engine import checkpoint, run, storage
from scm_core.engine.stages import Stage
from scm_core.method.objectives.consistency import Consistency
from scm_core.method.objectives.endpoint import Endpoint
from scm_core.networks import backbones, lora

pytest.importorskip("peft")

WORDS = ["modality=toy_plugin:SPEC", "preset=cpu", "trainer.accelerator=cpu"]
PLAN = "{endpoint: 1, steps: 3}, {consistency: 1, distribution_matching: 1, steps: 3}"
STUDENT = [*WORDS, "stage=student", f"student.phases=[{PLAN}]", "student.lr_warmup=1"]
STUDENT += ["student.lora.rank=4", "student.lora.alpha=8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory with a teacher and its LoRA student."""
    out = tmp_path_factory.mktemp("lora") / "run"
    run.main([*WORDS, "stage=teacher", "max_steps=20", "teacher.lr_warmup=1", f"out={out}"])
    run.main([*STUDENT, f"out={out}"])
    return out


@pytest.fixture
def begun(trained, tmp_path):
    """A folder with that teacher alone."""
    shutil.copy(trained / "teacher.safetensors", tmp_path)
    return tmp_path


def evaluated(model):
    torch.manual_seed(0)
    x, t = torch.randn(2, *model.shape), torch.tensor([0.4, 1.2])
    with torch.no_grad():
        return model.backbone(x, t, {"pitch": torch.arange(2)})


def test_a_student_holds_its_adapter_and_names_its_teacher(trained):
    student, teacher = (load_file(trained / f"{n}.safetensors") for n in ("student", "teacher"))
    layers = {key.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight") for key in student}
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in student)
    assert {f"{layer}.weight" for layer in layers} < set(teacher)
    assert sum(v.numel() for v in student.values()) < sum(v.numel() for v in teacher.values()) / 2
    with safe_open(trained / "student.safetensors", "pt") as file:
        stated = json.loads(file.metadata()["lora"])
    network = checkpoint.load(trained / "teacher.safetensors", WORDS[0][9:]).backbone
    base = lora.fingerprint(network.state_dict())
    assert stated == {"base": base, "rank": 4, "alpha": 8.0}


def test_a_checkpoint_holds_what_is_trained_and_no_copy_of_the_teacher(trained):
    held = torch.load(trained / "student" / "last.ckpt", weights_only=True)
    own = {key for key in held["state_dict"] if "lora_" not in key}
    assert own and all(key.startswith("objectives.") and ".weight." in key for key in own)
    averaged = held["callbacks"]["Averaging"]["average"]
    assert averaged.keys() == load_file(trained / "student.safetensors").keys()


def test_a_student_is_loaded_merged_and_computes_what_it_did_in_training(trained):
    student = checkpoint.load(trained / "student.safetensors", WORDS[0][9:])
    teacher = checkpoint.load(trained / "teacher.safetensors", WORDS[0][9:])
    assert student.stage == "student"
    assert student.backbone.state_dict().keys() == teacher.backbone.state_dict().keys()
    unmerged = lora.Adapters(teacher.backbone, 4, alpha=8).new()
    unmerged.load_state_dict(load_file(trained / "student.safetensors"))
    plain = evaluated(teacher)
    teacher_and_adapter = type("", (), {"backbone": unmerged, "shape": teacher.shape})
    found = evaluated(student)
    torch.testing.assert_close(found, evaluated(teacher_and_adapter), rtol=1e-4, atol=1e-5)
    assert (found - plain).norm() > 1e-3 * plain.norm()


def test_it_stays_of_its_rank_and_layers(trained, refused):
    for words in ("rank=2", "targets=[proj]"):
        said = refused("train", *STUDENT, f"student.lora.{words}", f"out={trained}")
        assert "holds a run with another student.lora." in said


def test_layers_that_are_not_there_are_refused_before_the_teacher_trains(tmp_path, refused):
    words = [*STUDENT[:3], *STUDENT[4:], "student.lora.targets=[nowhere]"]
    said = refused("train", *words, f"out={tmp_path}/run")
    assert "student.lora.targets: no layer is called nowhere" in said
    assert not (tmp_path / "run").exists()


def test_a_merged_student_needs_no_teacher(trained, begun):
    run.main([*STUDENT, "student.lora.merge=true", f"out={begun}"])
    (begun / "teacher.safetensors").unlink()
    merged = checkpoint.load(begun / "student.safetensors", WORDS[0][9:])
    student = checkpoint.load(trained / "student.safetensors", WORDS[0][9:])
    torch.testing.assert_close(evaluated(merged), evaluated(student), rtol=5e-3, atol=5e-3)


def test_a_merge_that_was_left_undone_is_made_up_for(trained, begun):
    shutil.copy(trained / "student.safetensors", begun)
    run.main([*STUDENT, "student.lora.merge=true", f"out={begun}"])
    assert "lora" not in storage.read(begun / "student.safetensors")[0]


def test_its_teacher_stays_as_it_is(trained, tmp_path, capsys):
    out = tmp_path / "copy"
    shutil.copytree(trained, out)
    before = (out / "teacher.safetensors").read_bytes()
    run.main([*STUDENT[:3], *STUDENT[4:], "teacher.max_steps=30", f"out={out}"])
    assert "a LoRA student is nothing without it" in " ".join(capsys.readouterr().out.split())
    assert (out / "teacher.safetensors").read_bytes() == before
    checkpoint.load(out / "student.safetensors", WORDS[0][9:])
    (out / "student.safetensors").unlink()  # one that has begun is as much in need of it
    run.main([*WORDS, "stage=teacher", "teacher.max_steps=30", f"out={out}"])
    assert (out / "teacher.safetensors").read_bytes() == before


def test_without_its_teacher_it_is_one_sentence(trained, tmp_path):
    path = shutil.copy(trained / "student.safetensors", tmp_path)
    with pytest.raises(UserError, match="put its teacher.safetensors beside it"):
        checkpoint.load(path, WORDS[0][9:])
    described, weights = storage.read(trained / "teacher.safetensors")
    first = next(iter(weights))
    weights[first] = weights[first] + 1
    storage._write(tmp_path / "teacher.safetensors", weights, described)
    with pytest.raises(UserError, match="holds a LoRA of another teacher than the one"):
        checkpoint.load(path, WORDS[0][9:])


def test_an_adapter_of_nonsense_is_one_sentence(trained, begun):
    described, weights = storage.read(trained / "student.safetensors")
    key = next(iter(weights))
    broken = begun / "student.safetensors"
    cases = [({}, {"rank": 0}), ({}, {"rank": "x"}), ({key: weights[key][:1, :1]}, {})]
    wide = {key: torch.zeros(1, 300_000), key.replace("_A", "_B"): torch.zeros(300_000, 1)}
    cases += [(wide, {}), ({"nothing.lora_A.weight": weights[key].clone()}, {})]
    for other, stated in cases:
        adapter = described["lora"] | stated
        storage._write(broken, weights | other, described | {"lora": adapter})
        with pytest.raises(UserError, match="holds no LoRA of") as caught:
            checkpoint.load(broken, WORDS[0][9:])
        assert "\n" not in str(caught.value)


def test_in_8_bits_it_is_merged(trained, tmp_path):
    storage.shrink(trained / "student.safetensors", tmp_path / "student.safetensors")
    small = checkpoint.load(tmp_path / "student.safetensors", WORDS[0][9:])
    student = checkpoint.load(trained / "student.safetensors", WORDS[0][9:])
    torch.testing.assert_close(evaluated(small), evaluated(student), rtol=0.05, atol=0.05)


def test_it_is_shared_with_its_teacher(trained, tmp_path):
    assert "teacher.safetensors" in hub.save(trained / "student.safetensors", tmp_path, 16, "")
    assert checkpoint.load(tmp_path / "student.safetensors", WORDS[0][9:]).stage == "student"


@pytest.mark.parametrize("more", [[], ["trainer.recompute=true"]])
def test_a_stopped_run_resumes_bit_for_bit(trained, begun, more):
    run.main([*STUDENT, *more, "max_steps=3", f"out={begun}"])
    run.main([*STUDENT, *more, f"out={begun}"])
    whole, parts = (load_file(place / "student.safetensors") for place in (trained, begun))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_full_weights_do_not_resume_an_adapter(trained):
    words = [word for word in STUDENT if "lora" not in word]
    with pytest.raises(UserError, match="another student.lora.rank \\(4, now None\\)"):
        run.main([*words, "max_steps=9", f"out={trained}"])


def test_it_learns_from_data_alone(begun):
    words = ["student.method=train", "student.guidance=1", "student.lora.rank=2"]
    plan = "student.phases=[{consistency: 1, steps: 2}]"
    run.main([*WORDS, "stage=student", *words, plan, f"out={begun}"])
    assert checkpoint.load(begun / "student.safetensors", WORDS[0][9:]).step == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rank=0"], "student.lora.rank=0 must be at least 1"),
        (["alpha=8"], "without a rank changes nothing: give student.lora.rank"),
        (["targets=[qkv]"], "without a rank changes nothing: give student.lora.rank"),
        (["rank=2", "alpha=-1"], "student.lora.alpha=-1.0 must be a number above 0"),
        (["rank=2", "targets=[qkw]"], "student.lora.targets: no layer is called qkw"),
    ],
)
def test_what_no_adapter_has_is_one_sentence(words, sentence, begun, refused):
    words = [f"student.lora.{word}" for word in words]
    assert sentence in refused("train", *WORDS, "stage=student", *words, f"out={begun}")


def test_compiled_and_recomputed_at_once_is_one_sentence(begun, refused):
    both = ["trainer.compile=true", "trainer.recompute=true"]
    assert "not with both" in refused("train", *STUDENT, *both, f"out={begun}")


def test_without_peft_it_is_one_sentence(begun, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    said = refused("train", *STUDENT, f"out={begun}")
    assert "pip install 'scm-core[lora]'" in said


EXACT = Gaussian(0.3, 0.2, SIGMA_DATA)


@pytest.fixture(scope="module")
def gaussian_teacher():
    """A network of Gaussian data, to a few percent."""
    torch.manual_seed(0)
    options = {"width": 32, "depth": 2, "heads": 2}
    network = backbones.build(backbones.BackboneConfig(patch=1, options=options), (1, 4), {})
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        t = torch.rand(64) * 1.5
        x0 = EXACT.mean + EXACT.std * torch.randn(64, 1, 4)
        x = (t.cos()[:, None, None] * x0 + t.sin()[:, None, None] * torch.randn_like(x0) / 2) * 2
        loss = (network(x, t) - EXACT.teacher(x, t)).square().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    return network


@torch.no_grad()
def distance(model):
    """Root mean square between where it and the exact flow map take noise, in one step."""
    x = torch.randn(256, 1, 4, generator=torch.Generator().manual_seed(1))
    t = torch.full((256,), 1.4)
    return (model(x, t) - EXACT.student(x, t)).square().mean().sqrt().item()


@pytest.mark.parametrize(
    "kind, options, share",
    [(Endpoint, {"solver_steps": 6}, 0.33), (Consistency, {"tangent_warmup": 0}, 0.6)],
)
def test_an_adapter_learns_where_its_teachers_trajectories_end(
    kind, options, share, gaussian_teacher, monkeypatch
):
    monkeypatch.setattr(Stage, "step", 1)
    adapters = lora.Adapters(copy.deepcopy(gaussian_teacher), 4)
    backbone, teacher = adapters.new(), adapters.off()
    phases = [Phase({"it": 1.0}, 100, 1e-3)]
    stage = Stage(backbone, phases, {"it": kind(kind.Options(**options))}, {}, teacher)
    stage.on_fit_start()
    optimizer = torch.optim.Adam(stage.parameters(), 3e-3)
    before, held = distance(backbone), distance(teacher)
    for _ in range(60):
        batch = Batch(EXACT.mean + EXACT.std * torch.randn(64, 1, 4), {})
        loss = stage.training_step(batch, 0)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert distance(backbone) < share * before
    assert distance(teacher) == held


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_the_adapters_that_one_trains(strategy, tmp_path):
    for processes, more in ((1, []), (2, [f"trainer.strategy={strategy}"])):
        words = [
            *TOY,
            "student.lora.rank=4",
            "trainer.recompute=true",
            f"out={tmp_path}/{processes}",
        ]
        train("train", *words, *more, f"out={tmp_path}/{processes}", processes=processes)
    assert_close(tmp_path / "2", tmp_path / "1")
    one, two = (torch.load(tmp_path / n / "student" / "last.ckpt", weights_only=True) for n in "12")
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=1e-3, atol=1e-5)
