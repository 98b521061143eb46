"""The checkpoint of a run is whole, of a whole step, and of no state that has diverged."""

import errno
import math
import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from scm_core.base import console
from scm_core.base.errors import UserError
from scm_core.base.files import replacing
from scm_core.contract.objectives import Phase
from scm_core.engine.callbacks import Averaging, Interrupt
from scm_core.engine.checkpointing import Checkpointing, DivergenceGuard, WholeCheckpoints
from scm_core.engine.stages import Stage
from scm_core.method.objectives import Objective

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def heard():
    """Signals as a terminal has them, be the tests run by nohup or in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Falling(Objective):
    """A mean that falls; its loss is no number from step `bad` on."""

    bad = math.inf

    def loss(self, student, batch):
        loss = student.backbone(batch).mean() * (math.inf if student.step + 1 >= self.bad else 1.0)
        return loss.expand(2), {"error": loss.expand(2), "t": torch.tensor([0.1, 1.5])}


class Toy(Stage):
    def __init__(self, bad=math.inf):
        falling = Falling()
        falling.bad = bad
        super().__init__(torch.nn.Linear(2, 1), [Phase({"toy": 1.0}, 9, 1e-3)], {"toy": falling})


class At(Callback):
    """What happens after the optimiser's step of that number, before the average knows of it."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer, stage, *_):
        if trainer.global_step == self.step:
            self.act(stage)


def fit(folder, *first, every=1, stage=None, steps=9):
    """Train the toy, the callbacks `first` before all others; the trainer."""
    guard = DivergenceGuard(folder / "last.ckpt")
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[*first, Averaging(0.05), guard, Checkpointing(every, guard), Interrupt()],
        plugins=WholeCheckpoints(),
        enable_checkpointing=False,
        logger=TensorBoardLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = torch.utils.data.DataLoader(torch.rand(20, 2), batch_size=2)
    trainer.fit(stage or Toy(), batches, weights_only=True)
    return trainer


def step(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["global_step"]


def checkpoints(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_checkpoint_takes_the_place_of_the_one_before_wherever_temporary_files_are(
    tmp_path, monkeypatch
):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    with tempfile.TemporaryDirectory(dir=other) as elsewhere:
        monkeypatch.setattr(tempfile, "tempdir", elsewhere)
        last = tmp_path / "last.ckpt"
        trainer = fit(tmp_path, steps=1)
        os.link(last, tmp_path / "kept")
        before = last.read_bytes()
        trainer.lightning_module.backbone.weight.data.zero_()
        trainer.save_checkpoint(last)
    assert (tmp_path / "kept").read_bytes() == before != last.read_bytes()


def test_a_checkpoint_that_cannot_be_read_back_leaves_the_one_before(tmp_path, monkeypatch):
    write = Path.write_bytes
    half = At(3, lambda _: monkeypatch.setattr(Path, "write_bytes", lambda p, b: write(p, b[:999])))
    with pytest.raises(UserError, match="what was written cannot be read"):
        fit(tmp_path, half)
    assert step(tmp_path) == 2 and len(checkpoints(tmp_path)) <= 2


@pytest.mark.parametrize("before", [0, 2])
def test_a_disk_that_refuses_is_told_truly(tmp_path, monkeypatch, before):
    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    full = At(before + 1, lambda _: monkeypatch.setattr(os, "fsync", fsync))
    with pytest.raises(UserError, match="cannot write .*last.ckpt: No space left") as caught:
        fit(tmp_path, full)
    assert ("the one before it is whole" in str(caught.value)) == bool(before)
    assert not before or step(tmp_path) == before


@pytest.mark.parametrize("sent", SIGNALS)
def test_a_signal_to_stop_saves_the_step_that_it_falls_into(tmp_path, sent):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit):
        fit(tmp_path, At(3, lambda _: os.kill(os.getpid(), sent)), every=100)
    assert step(tmp_path) == 3
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["callbacks"]["Averaging"]["step"] == 3
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_a_second_ctrl_c_leaves_the_last_checkpoint(tmp_path):
    """Between the optimiser's step and that of the average, too."""

    def twice(_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit):
        fit(tmp_path, At(5, twice), every=2)
    assert step(tmp_path) == 4


def test_what_fails_within_a_step_leaves_the_last_checkpoint_and_between_steps_is_kept(tmp_path):
    def fail(_):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        fit(tmp_path / "within", At(5, fail), every=2)
    assert step(tmp_path / "within") == 4
    stage = Toy()
    stage.on_train_batch_start = lambda *_: fail(_) if stage.global_step == 5 else None
    with pytest.raises(ValueError, match="a defect"):
        fit(tmp_path / "between", every=2, stage=stage)
    assert step(tmp_path / "between") == 5


def test_the_checkpoint_before_is_kept_until_the_newest_is_known_to_be_good(tmp_path):
    """By the loss of the batch after it: what an update broke shows no sooner."""
    with pytest.raises(SystemExit):
        fit(tmp_path / "a", At(5, lambda _: os.kill(os.getpid(), signal.SIGINT)), every=2)
    assert checkpoints(tmp_path / "a") == ["last.ckpt", "previous.ckpt"]
    with pytest.raises(SystemExit):
        fit(tmp_path / "b", At(4, lambda _: os.kill(os.getpid(), signal.SIGINT)), every=3)
    assert checkpoints(tmp_path / "b") == ["last.ckpt", "previous.ckpt"]
    assert torch.load(tmp_path / "b" / "previous.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.parametrize("every, kept", [(1, 2), (2, 2), (4, None)])
def test_a_checkpoint_is_never_of_a_state_that_has_diverged(tmp_path, every, kept):
    with pytest.raises(UserError, match="diverged at step 4") as caught:
        fit(tmp_path, every=every, stage=Toy(bad=4))
    if kept:
        assert "the last good checkpoint is" in str(caught.value) and step(tmp_path) == kept
        assert checkpoints(tmp_path) == ["diverged.json", "last.ckpt"]
    else:
        assert "no checkpoint had been written" in str(caught.value)
        assert checkpoints(tmp_path) == ["diverged.json"]


def test_a_first_checkpoint_that_has_diverged_is_named(tmp_path):
    with pytest.raises(UserError, match="last.ckpt is of the step before it: delete it"):
        fit(tmp_path, every=3, stage=Toy(bad=4))


def test_weights_that_are_no_numbers_are_not_kept(tmp_path):
    broken = At(3, lambda stage: stage.backbone.weight.data.fill_(math.nan))
    with pytest.raises(UserError, match="diverged at step 3: its weights are NaN or Inf"):
        fit(tmp_path, broken)
    assert step(tmp_path) == 2


def test_a_run_clears_away_what_killed_ones_left_half_written(tmp_path):
    left = tmp_path / ".last.4711.part.ckpt"
    left.write_text("half")
    fit(tmp_path, every=4, steps=9)
    assert step(tmp_path) == 9 and not left.exists()


@pytest.mark.parametrize("sent", SIGNALS)
def test_a_command_that_is_told_to_stop_leaves_no_half_file(tmp_path, monkeypatch, capsys, sent):
    """Whatever the command: it is interrupted as by Ctrl-C."""

    def main(_):
        with replacing(tmp_path / "a") as part:
            part.write_text("half")
            os.kill(os.getpid(), sent)

    monkeypatch.setattr(sys, "argv", ["a command"])
    before = signal.getsignal(sent)
    with pytest.raises(SystemExit) as caught:
        console.run(main, "")
    assert caught.value.code == 130 and not list(tmp_path.iterdir())
    assert "run the same command again to resume" in capsys.readouterr().err
    assert signal.getsignal(sent) == before


def test_a_closed_terminal_stops_no_command_that_ignores_it(monkeypatch):
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with console.stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
