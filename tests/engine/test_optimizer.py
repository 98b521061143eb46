"""RAdam beside Adam: what it steps by, across phases and when resumed."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from scm_core import UserError
from scm_core.contract.objectives import Phase
from scm_core.engine import run
from scm_core.engine.callbacks import Interrupt, Stopped
from scm_core.engine.stages import Stage
from scm_core.method.objectives.consistency import Consistency
from scm_core.method.objectives.diffusion import Diffusion

WORDS = ["modality=toy_plugin:SPEC", "preset=cpu", "trainer.accelerator=cpu"]
PLAN = "{endpoint: 1, steps: 3}, {consistency: 1, distribution_matching: 1, steps: 3}"
STUDENT = [*WORDS, "stage=student", f"student.phases=[{PLAN}]", "student.lr_warmup=1"]
STUDENT += ["student.optimizer=radam"]


def optimizer(monkeypatch, weights, objectives, name="adam"):
    stage = Stage(nn.Linear(1, 1), [Phase(weights, 10, 0.1)], objectives, optimizer=name)
    trainer = type("Trainer", (), {"max_steps": 10, "gradient_clip_val": None})
    monkeypatch.setattr(Stage, "trainer", trainer)
    return stage.configure_optimizers()["optimizer"]


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("radam", torch.optim.RAdam)]
)
def test_the_optimizer_is_torchs_own(name, kind, monkeypatch):
    found = optimizer(monkeypatch, {"diffusion": 1.0}, {"diffusion": Diffusion()}, name)
    assert type(found) is kind
    (group,) = found.param_groups
    assert group["betas"] == (0.9, 0.99) and group["lr"] == 0.1 and group["weight_decay"] == 0


@pytest.mark.parametrize("weights", [{"consistency": 1.0}, {"diffusion": 0.1, "consistency": 1.0}])
def test_the_consistency_loss_has_no_momentum(weights, monkeypatch):
    objectives = {"diffusion": Diffusion(), "consistency": Consistency()}
    (group,) = optimizer(monkeypatch, weights, objectives).param_groups
    assert group["betas"] == (0.0, 0.99)


def test_radam_is_resumed_within_a_phase_as_if_uninterrupted(tmp_path, monkeypatch):
    def stop(self, trainer, *_):
        if trainer.global_step == 4:
            raise Stopped

    run.main([*WORDS, "stage=teacher", "max_steps=1", f"out={tmp_path}/whole"])
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    run.main([*STUDENT, f"out={tmp_path}/whole"])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Interrupt, "on_train_batch_end", stop)
        run.main([*STUDENT, f"out={tmp_path}/parts"])
    run.main([*STUDENT, f"out={tmp_path}/parts"])
    whole, parts = (
        load_file(tmp_path / name / "student.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_a_run_may_change_its_optimizer():
    """Both keep the same moments."""
    weight = nn.Parameter(torch.ones(3))
    optimizers = [kind([weight], lr=0.1) for kind in (torch.optim.Adam, torch.optim.RAdam)]
    for before, after in (optimizers, optimizers[::-1]):
        weight.grad = torch.ones(3)
        before.step()
        after.load_state_dict(before.state_dict())
        after.step()
        assert after.state[weight].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert weight.isfinite().all()


def test_another_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="student.optimizer=sgd is none of adam, radam"):
        run.main([*WORDS, "student.optimizer=sgd", f"out={tmp_path}"])
