"""Phases of a student: what each trains, how one follows another, and what older keys become."""

import pytest
import torch
from lightning import Callback, Trainer
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import nn

from scm_core import UserError
from scm_core.contract.objectives import Phase, phases
from scm_core.engine import config, refusals, run
from scm_core.engine.callbacks import Averaging
from scm_core.engine.phases import Phases
from scm_core.engine.stages import Stage
from scm_core.method.objectives import Objective


class Pull(Objective):
    """Draws the backbone's weight to a number of its own."""

    def __init__(self):
        super().__init__()
        self.goal = nn.Parameter(torch.ones(()))

    def loss(self, student, batch):
        loss = (student.backbone.weight - self.goal).square().mean().expand(2)
        return loss, {"error": loss.detach()}


class Steady(Pull):
    betas = (0.0, 0.99)
    monitors = "gap"

    def loss(self, student, batch):
        loss, metrics = super().loss(student, batch)
        self.steps_seen = [*getattr(self, "steps_seen", []), (student.step, student.steps)]
        return loss, {"gap": metrics["error"]}


class Notes(Callback):
    """What there is before and after each step."""

    def __init__(self, averaging):
        self.averaging, self.before, self.after = averaging, [], []

    def on_train_batch_start(self, trainer, stage, *_):
        self.before.append(stage.backbone.weight.detach().clone())

    def on_train_batch_end(self, trainer, stage, *_):
        (optimizer,) = trainer.optimizers
        steps = {int(state["step"]) for state in optimizer.state.values()}
        now = {"average": self.averaging.ema.average["weight"].clone(), "steps": steps}
        now |= {"betas": optimizer.param_groups[0]["betas"], "monitored": stage.monitored_name}
        now |= {"goals": [objective.goal.item() for objective in stage.named.values()]}
        now |= {"averaged": self.averaging.ema.step, "weight": stage.backbone.weight.clone()}
        self.after.append(now)


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    plan = [Phase({"pull": 1.0}, 4, 0.1), Phase({"steady": 1.0, "pull": 0.5}, 1, 0.01, 2)]
    stage = Stage(nn.Linear(1, 1), plan, {"pull": Pull(), "steady": Steady()})
    averaging = Averaging(0.1)
    notes = Notes(averaging)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=7,
        callbacks=[averaging, Phases(averaging), notes],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path_factory.mktemp("phases"),
    )
    trainer.fit(stage, torch.utils.data.DataLoader(torch.zeros(8)))
    return notes, stage


def test_a_phase_starts_from_the_averaged_weights_of_the_one_before(noted):
    notes, _ = noted
    ended = notes.after[3]
    assert not torch.equal(ended["weight"], ended["average"])
    torch.testing.assert_close(notes.before[4], ended["average"], rtol=0, atol=0)


def test_adam_and_the_average_start_anew(noted):
    notes, _ = noted
    assert [now["steps"] for now in notes.after] == [{1}, {2}, {3}, {4}, {1}, {2}, {3}]
    assert [now["averaged"] for now in notes.after] == [1, 2, 3, 4, 1, 2, 3]


def test_a_phase_has_its_own_metric_betas_and_steps(noted):
    notes, stage = noted
    assert [now["monitored"] for now in notes.after] == ["error"] * 4 + ["gap"] * 3
    assert [now["betas"] for now in notes.after] == [(0.9, 0.99)] * 4 + [(0.0, 0.99)] * 3
    assert stage.named["steady"].steps_seen == [(0, 3), (1, 3), (2, 3)]  # as long as it has to be


def test_what_a_phase_does_not_train_rests(noted):
    notes, _ = noted
    pull, steady = zip(*(now["goals"] for now in notes.after), strict=True)
    assert steady[:4] == (1.0,) * 4 and steady[4] != 1.0
    assert len({*pull}) == 7


def test_a_phase_has_a_warm_up_and_a_cosine_of_its_own():
    plan = [Phase({"pull": 1.0}, 4, 0.1), Phase({"pull": 1.0}, 4, 0.01, 2)]
    stage = Stage(nn.Linear(1, 1), plan, {"pull": Pull()})
    rates = torch.tensor([stage.lr_at(step, 8) for step in range(8)])
    share = torch.tensor([1.0, 0.853553, 0.5, 0.146447])
    torch.testing.assert_close(rates[:4], 0.1 * share)
    torch.testing.assert_close(rates[4:], 0.01 * share * torch.tensor([0.5, 1, 1, 1]))
    assert stage.lr_at(4, 8, own=1.0) == pytest.approx(0.5)


def test_a_run_that_ended_with_a_phase_goes_on_as_one_that_did_not(tmp_path):
    words = ["modality=toy_plugin:SPEC", "preset=cpu", "trainer.accelerator=cpu", "stage=student"]
    plan = "{endpoint: 1, steps: 3}, {consistency: 1, distribution_matching: 1, steps: 3}"
    words += [f"student.phases=[{plan}]", "student.lr_warmup=1"]
    run.main([*words[:3], "stage=teacher", "max_steps=1", f"out={tmp_path}/whole"])
    (tmp_path / "parts").mkdir()
    teacher = (tmp_path / "whole" / "teacher.safetensors").read_bytes()
    (tmp_path / "parts" / "teacher.safetensors").write_bytes(teacher)
    run.main([*words, f"out={tmp_path}/whole"])
    run.main([*words, "max_steps=3", f"out={tmp_path}/parts"])
    run.main([*words, f"out={tmp_path}/parts"])
    whole, parts = (
        load_file(tmp_path / name / "student.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


OLD = """
student:
  max_steps: 9
  lr: 7.0e-5
  norm: rms
  tangent_warmup: 3
  midtraining: {steps: 4, lr: 2.0e-3, solver: ddim}
  score: {weight: 0.1, lr: 1.0e-4, rollouts: [2]}
"""


def test_a_file_with_older_keys_means_what_it_meant(tmp_path):
    (tmp_path / "old.yaml").write_text(OLD)
    words = ["modality=image", f"preset={tmp_path}/old.yaml", "student.score.draws=3"]
    _, settings = config.load([*words, "student.c=0.2"])
    first, second = phases(settings.student)
    assert first == Phase({"endpoint": 1.0}, 4, 2e-3, 100)
    assert second == Phase({"consistency": 1.0, "distribution_matching": 0.1}, 5, 7e-5, 100)
    assert OmegaConf.to_container(settings.student.options) == {
        "endpoint": {"solver": "ddim"},
        "consistency": {"tangent_warmup": 3, "norm": "rms", "c": 0.2},
        "distribution_matching": {"lr": 1e-4, "rollouts": [2], "draws": 3},
    }


@pytest.mark.parametrize(
    ("old", "found"),
    [
        ("max_steps: 5, consistency: 0, score: {weight: 1}", [("distribution_matching", 5)]),
        ("max_steps: 5, midtraining: {steps: 5}", [("endpoint", 5)]),
        ("max_steps: 5, midtraining: {steps: 0}", [("consistency", 5)]),
    ],
)
def test_older_steps_become_phases(tmp_path, old, found):
    (tmp_path / "old.yaml").write_text(f"student: {{{old}}}")
    _, settings = config.load(["modality=image", f"preset={tmp_path}/old.yaml"])
    assert [(*phase.weights, phase.steps) for phase in phases(settings.student)] == found


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        ("midtraining: {steps: many}", "student: invalid literal"),
        ("midtraining: {steps: [1]}", "student: int"),
        ("midtraining: {steps: 1, step: 2}", "no key student.midtraining"),
        ("midtraining: 3", "no key student.midtraining"),
        ("phases: 3", "student.phases"),
        ("phases: [3]", "Cannot assign int to Dict"),
        ("phases: [{consistency: null, steps: 3}]", "student.phases[0]: float"),
        ("phases: [{consistency: 1, steps: .inf}]", "student.phases[0]: cannot convert"),
        ("options: {consistency: 3}", "student.options.consistency"),
        ("options: {consistency: {c: [1]}}", "student.options.consistency.c"),
    ],
)
def test_a_section_of_nonsense_is_one_sentence(tmp_path, student, sentence):
    (tmp_path / "bad.yaml").write_text(f"student: {{{student}}}")
    with pytest.raises(UserError) as caught:
        refusals.check(config.load(["modality=image", f"preset={tmp_path}/bad.yaml"])[1])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_an_older_key_that_phases_replace_is_refused_with_them():
    for key in ("midtraining.steps", "midtraining.lr", "consistency", "score.weight"):
        with pytest.raises(UserError, match=rf"student.{key} is gone: give student.phases="):
            config.load(["modality=image", f"student.{key}=1"])
