"""Averages of other widths, rebuilt after a run from the snapshots that it has left."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from scm_core import UserError
from scm_core.apps import reweigh
from scm_core.engine import run, storage

WORDS = ["modality=toy_plugin:SPEC", "preset=cpu", "trainer.accelerator=cpu", "teacher.lr=1e-2"]
PLAN = "student.phases=[{endpoint: 1, steps: 4}, {consistency: 1, steps: 96, lr: 5.0e-2}]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in `ema` alone, with 12 snapshots."""
    folder = tmp_path_factory.mktemp("reweigh")
    run.main([*WORDS, "stage=teacher", "max_steps=1", f"out={folder}/narrow"])
    shutil.copytree(folder / "narrow", folder / "wide")
    student = [*WORDS, "stage=student", PLAN, "student.lr_warmup=1", "trainer.ema_snapshots=12"]
    # The first phase hands its average over, which must be the same in both.
    for name, ema in (("narrow", 0.05), ("wide", 0.15)):
        run.main([*student, "student.ema=0.05", "max_steps=4", f"out={folder}/{name}"])
        run.main([*student, f"student.ema={ema}", f"out={folder}/{name}"])
    return folder


def weights(path):
    return torch.cat([value.double().flatten() for value in load_file(path).values()])


def test_another_width_is_rebuilt_as_if_it_had_been_kept(runs):
    reweigh.main([f"out={runs}/narrow", "ema=[0.15,0.05]"])
    narrow, wide = (weights(runs / name / "student.safetensors") for name in ("narrow", "wide"))
    same, rebuilt = (
        weights(runs / "narrow" / f"student-ema{width}.safetensors") for width in (0.05, 0.15)
    )
    apart = (narrow - wide).norm()
    assert (rebuilt - wide).norm() < 0.1 * apart
    assert (same - narrow).norm() < 1e-3 * apart
    described, _ = storage.read(runs / "narrow" / "student-ema0.15.safetensors")
    assert described["config"]["student"]["ema"] == 0.15 and described["step"] == 100


def test_snapshots_are_of_the_last_phase_and_no_more_than_asked_for(runs):
    kept = sorted(path.name for path in (runs / "narrow" / "student" / "ema").iterdir())
    expected = [
        f"1-{step}-{width}.safetensors" for step in range(8, 97, 8) for width in (0.05, 0.1)
    ]
    assert kept == sorted(expected)


def test_a_stage_that_is_started_over_keeps_none_of_before(runs, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(runs / "narrow", out, ignore=shutil.ignore_patterns("*.ckpt", "student.*"))
    (out / "student" / "ema" / ".1-96-0.05.77.part.safetensors").write_bytes(b"cut off")
    words = [*WORDS, "stage=student", "student.phases=[{consistency: 1, steps: 6}]", f"out={out}"]
    run.main([*words, "student.lr_warmup=1", "trainer.ema_snapshots=2"])
    kept = {path.name for path in (out / "student" / "ema").glob("[!.]*")}
    assert kept == {f"0-{step}-{width}.safetensors" for step in (3, 6) for width in (0.05, 0.1)}
    reweigh.main([f"out={out}", "ema=0.05"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give out=FOLDER ema="),
        (["out={}/narrow"], "give out=FOLDER ema="),
        (["out={}/narrow", "ema=wide"], "give out=FOLDER ema="),
        (["out={}/narrow", "ema=0.4"], "ema is 0.4, it must lie between"),
        (["out={}/narrow", "ema=0.005"], "ema=0.005 cannot be rebuilt"),
        (["out={}/narrow", "ema=0.1", "stage=third"], "stage=third is none of"),
        (["out={}/narrow", "ema=0.1", "stage=teacher"], "trainer.ema_snapshots=16"),
        (["out={}/nowhere", "ema=0.1"], "no student at"),
    ],
)
def test_what_cannot_be_rebuilt_is_one_line(runs, words, sentence):
    with pytest.raises(UserError) as caught:
        reweigh.main([word.format(runs) for word in words])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
