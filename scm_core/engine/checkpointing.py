"""The checkpoint that a run resumes from: complete, proven, and of no state that has diverged."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO

from scm_core.base import distributed
from scm_core.base.errors import UserError, first_line
from scm_core.base.files import remove_parts, whole, write_text
from scm_core.data.batches import Shuffled
from scm_core.engine import sharding
from scm_core.engine.callbacks import OnOptimizerStep, Stopped, any_process
from scm_core.engine.stages.stage import BINS, Stage

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # beside it until a batch has shown that the last has not diverged
DIVERGED = 100.0  # in units of the data: a healthy error is below 2, a healthy |g| below 5


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one before, reads it, and only then lets it take its place.

    The one before stays as `previous.ckpt`. What the disk refuses is in `refused` for all processes
    to ask, of which one writes.
    """

    refused: OSError | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path, content = Path(path), io.BytesIO()
        torch.save(checkpoint, content)  # whose own files say nothing sensible of a full disk
        try:
            with whole(path) as part:
                part.write_bytes(content.getbuffer())
                _prove(part)
                if path.exists():
                    _link(path, path.with_name(PREVIOUS))
        except OSError as error:
            self.refused = error


def _prove(path: Path) -> None:
    """OSError where a checkpoint could not be gone on from."""
    try:
        torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # torch raises whatever the bytes make of its reader
        raise OSError(f"what was written cannot be read: {first_line(error)}") from error


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, where the file system knows such."""
    with contextlib.suppress(OSError):
        name.unlink(missing_ok=True)
        os.link(path, name)


def resumable(last: Path, stage: Stage) -> Path | None:
    """The checkpoint to resume from, if there is one.

    UserError when it cannot be read, or holds other networks than this stage's.
    """
    if not last.exists():
        return None
    try:
        held = torch.load(last, weights_only=True, map_location="cpu", mmap=True)
        held["pytorch-lightning_version"], held["loops"]
        shapes = {key: value.shape for key, value in held["state_dict"].items()}
    except Exception as error:  # torch raises whatever the broken bytes make of its reader
        raise UserError(f"{last} cannot be read: delete it to start the stage over") from error
    wanted = {key: value.shape for key, value in stage.state_dict().items()}
    if strange := sorted(key for key, _ in shapes.items() ^ wanted.items()):
        raise UserError(
            f"{last} holds other networks than these settings make ({strange[0]}): choose another "
            "out=, or delete it to start the stage over"
        )
    return last


class Checkpointing(OnOptimizerStep):
    """`last.ckpt` every so many steps, at the end, and when a run is stopped or fails.

    Never in the middle of a step, nor of what the guard says has diverged.
    """

    def __init__(self, every: int, guard: DivergenceGuard) -> None:
        self.every, self.guard = every, guard
        self.path = guard.checkpoint
        self.sound = False  # whether the state is that of a whole step, and may be kept

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        if trainer.is_global_zero:
            remove_parts(self.path)

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        super().on_train_start(trainer, stage)
        self.sound, self.saved = True, trainer.global_step

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.sound = False  # until the average has taken in what comes of it

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        self.sound = True
        if self.stepped(trainer) and trainer.global_step % self.every == 0:
            self.save(trainer, stage)

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        self.save(trainer, stage)

    def on_exception(self, trainer: Trainer, stage: Stage, exception: BaseException) -> None:
        """Save what all processes have stopped after, or what one alone has failed in.

        Not at a second Ctrl-C, which is in a hurry.
        """
        failed = isinstance(exception, Exception) and trainer.world_size == 1
        if isinstance(exception, Stopped) or failed and self.sound and not self.guard.diverged:
            self.save(trainer, stage)

    def save(self, trainer: Trainer, stage: Stage) -> None:
        """Write the checkpoint, unless it is there; UserError where the disk refuses."""
        if self.saved == trainer.global_step:
            return
        self.sound = False  # what fails here is not tried again
        self.guard.approve(trainer, stage)
        began = time.perf_counter()
        trainer.save_checkpoint(self.path)
        if refused := distributed.all_gather(trainer.strategy.checkpoint_io.refused)[0]:
            before = "the one before it is whole: " if self.path.exists() else ""
            raise UserError(
                f"cannot write {self.path}: {refused.strerror or refused}; {before}free some room "
                "and run the command again"
            )
        self.guard.unproven = True
        self.sound, self.saved = True, trainer.global_step
        spent = {"speed/seconds to write a checkpoint": time.perf_counter() - began}
        trainer.logger.log_metrics(spent, trainer.global_step)


class DivergenceGuard(Callback):
    """Stops a run whose loss is no number or whose monitored figure has left all bounds.

    All processes stop, and `diverged.json` beside the checkpoint says what the step had learned
    from, as the first process knows it in which it happened. The checkpoint is then the last that
    had not diverged: the one before the newest is kept until a batch has been judged by its loss.
    """

    diverged = False
    pending: Verdict | None = None

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.previous = checkpoint.with_name(PREVIOUS)
        self.unproven = checkpoint.exists()  # no batch has been judged since it was written

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        self.batches = 0  # since the pass through the data began

    def on_train_epoch_start(self, trainer: Trainer, stage: Stage) -> None:
        self.batches = 0

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        """Judge the batch before this one: to wait for this one's figures would idle a GPU."""
        self.batches += 1
        loader, taken = trainer.train_dataloader, None
        if isinstance(loader.sampler, Shuffled):
            first = (self.batches - 1) * loader.batch_size
            taken = loader.sampler.order[first : first + loader.batch_size]
        verdict = Verdict(stage, trainer.global_step, taken)
        self.settle(trainer)
        self.pending = verdict

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        self.settle(trainer)

    def settle(self, trainer: Trainer) -> None:
        """UserError where the last batch diverged; all processes have to ask."""
        verdict, self.pending = self.pending, None
        if verdict is None:
            return
        if any_process(trainer, verdict.diverged):
            reports = distributed.all_gather(verdict.report() if verdict.diverged else None)
            sentence, facts = next(report for report in reports if report)
            if trainer.is_global_zero:
                write_text(self.checkpoint.with_name("diverged.json"), json.dumps(facts))
            self._stop(trainer, sentence)
        if self.unproven and trainer.is_global_zero:
            self.forget_previous()
        self.unproven = False

    def approve(self, trainer: Trainer, stage: Stage) -> None:
        """UserError where the state must not be kept; all processes have to ask."""
        self.settle(trainer)
        finite = [sharding.local(p.detach()).isfinite().all() for p in stage.parameters()]
        if any_process(trainer, not torch.stack(finite).all()):
            step = trainer.global_step
            self._stop(trainer, f"training diverged at step {step}: its weights are NaN or Inf")

    def forget_previous(self) -> None:
        """Remove the checkpoint before the newest, which is good."""
        with contextlib.suppress(OSError):
            self.previous.unlink(missing_ok=True)

    def _stop(self, trainer: Trainer, sentence: str) -> None:
        self.diverged = True
        kept = distributed.all_gather(self._kept() if trainer.is_global_zero else "")[0]
        raise UserError(
            f"{sentence}; {kept}. Lower the learning rate or lengthen the warm-up, and run the "
            "command again"
        )

    def _kept(self) -> str:
        """What there is to resume from, once a newest checkpoint that has diverged is undone."""
        if not self.checkpoint.exists():
            return "no checkpoint had been written"
        if self.unproven:
            if not self.previous.exists():
                return f"{self.checkpoint} is of the step before it: delete it"
            os.replace(self.previous, self.checkpoint)
        return f"the last good checkpoint is {self.checkpoint}"


class Verdict:
    """Whether a batch diverged, which a GPU may not know yet, and what there is to tell of it."""

    def __init__(self, stage: Stage, step: int, taken: list[int] | None) -> None:
        """Of the batch that has just ended; `taken` are its samples' places in the data."""
        self.name, self.step, self.taken = stage.monitored_name, step, taken
        self.last = loss, _, value = stage.last
        self.bad = ~(loss.isfinite() & (value < DIVERGED))
        mild = loss.isfinite().all() & (stage.monitored.nanmean() < DIVERGED)
        self.answer = (self.bad.any() & ~mild).to("cpu", non_blocking=True)
        self.computed = torch.cuda.Event() if loss.is_cuda else None
        if self.computed:
            self.computed.record()

    @property
    def diverged(self) -> bool:
        if self.computed:
            self.computed.synchronize()
        return bool(self.answer)

    def report(self) -> tuple[str, dict[str, Any]]:
        """What to tell, and to write down."""
        loss, t, value = self.last
        first = int(self.bad.nonzero()[0])
        place = int(t[first] * BINS * 2 / math.pi)
        low, high = (edge * math.pi / 2 / BINS for edge in (place, place + 1))
        sentence = (
            f"training diverged at step {self.step}: loss {loss[first]:.3g}, "
            f"{self.name} {value[first]:.3g} at t in [{low:.2f}, {high:.2f}]"
        )
        facts = {"step": self.step} | ({} if self.taken is None else {"samples": self.taken})
        figures = {"loss": loss, "t": t, self.name: value}
        return sentence, facts | {key: one.tolist() for key, one in figures.items()}
