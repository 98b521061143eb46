"""What happens around the training steps: averaging, saving, guarding, showing."""

from __future__ import annotations

import contextlib
import math
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn

from scm_core import media
from scm_core.cli import console
from scm_core.data import Shuffled
from scm_core.ema import PowerEMA
from scm_core.errors import UserError
from scm_core.modality import Decoder
from scm_core.stages.stage import BINS, Stage

DIVERGED = 100.0  # in units of the data: a healthy error is below 2, a healthy |g| below 5


class AtSteps(Callback):
    """What happens after an optimiser's step and not in the middle of an accumulation."""

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        self.seen = trainer.global_step  # which a resumed run does not know any sooner

    def stepped(self, trainer: Trainer) -> bool:
        """Whether the batch that has just ended completed a step; to be asked once a batch."""
        before, self.seen = self.seen, trainer.global_step
        return self.seen > before


class Averaging(AtSteps):
    """The power-function average of the backbone, in every checkpoint."""

    def __init__(self, sigma_rel: float) -> None:
        self.sigma_rel = sigma_rel
        self.ema: PowerEMA | None = None
        self.restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        self.ema = PowerEMA(stage.backbone, self.sigma_rel)
        if self.restored:
            self.ema.load_state_dict(self.restored)

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if self.stepped(trainer):
            self.ema.update(stage.backbone)

    def state_dict(self) -> dict[str, Any]:
        return self.ema.state_dict() if self.ema else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restored = state
        if self.ema and state:
            self.ema.load_state_dict(state)


class Saving(AtSteps, ModelCheckpoint):
    """`last.ckpt` every so many steps and when interrupted, each replacing the one before."""

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            every_n_train_steps=every,
            save_top_k=1,
            save_on_exception=True,
            enable_version_counter=False,
        )

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        AtSteps.on_train_start(self, trainer, stage)
        ModelCheckpoint.on_train_start(self, trainer, stage)

    def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
        if self.stepped(trainer):
            super().on_train_batch_end(trainer, *others)

    def on_exception(self, trainer: Trainer, stage: Stage, exception: BaseException) -> None:
        if not isinstance(exception, UserError):  # a diverged state must not replace a good one
            super().on_exception(trainer, stage, exception)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        try:
            super()._save_checkpoint(trainer, filepath)
        except OSError as error:  # the file is replaced whole or not at all
            raise UserError(
                f"cannot write {filepath}: {error.strerror or error}; the checkpoint before it is "
                "whole: free some room and run the command again"
            ) from error


class Seeding(AtSteps):
    """All that a step draws, and its batch, depend on the seed, the step and the process alone.

    So a resumed run does what an uninterrupted one does, bit for bit on one CPU: it needs no state
    of generators, and starts within the epoch where the last checkpoint was written.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        super().on_train_start(trainer, stage)
        self.part = 0
        self._place(trainer)
        self._seed(trainer)

    def on_train_epoch_start(self, trainer: Trainer, stage: Stage) -> None:
        self._place(trainer)

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        self.part = 0 if self.stepped(trainer) else self.part + 1
        self._seed(trainer)

    def _place(self, trainer: Trainer) -> None:
        """The next pass through the data begins where the run is."""
        loader, accumulate = trainer.train_dataloader, trainer.accumulate_grad_batches
        if isinstance(loader.sampler, Shuffled):
            epoch, steps = divmod(trainer.global_step, -(-len(loader) // accumulate))
            loader.sampler.seed, loader.sampler.epoch = self.seed, epoch
            loader.sampler.skip = steps * accumulate * loader.batch_size

    def _seed(self, trainer: Trainer) -> None:
        facts = (self.name, self.seed, trainer.global_step, self.part, trainer.global_rank)
        seed = random.Random(repr(facts)).getrandbits(32)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


class Interrupt(AtSteps):
    """Ctrl-C ends the run after the step it falls into, so that its checkpoint is whole.

    A second Ctrl-C does not wait.
    """

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        self.asked = False
        self.before = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if self.stepped(trainer) and self.asked:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        signal.signal(signal.SIGINT, self.before)

    def on_exception(self, trainer: Trainer, stage: Stage, exception: BaseException) -> None:
        if not self.asked:  # else Lightning now ignores Ctrl-C until its checkpoint is written
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Guard(Callback):
    """Stops a run whose loss is no number or whose watched figure has left all bounds."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        loss, t, value = stage.last
        bad = ~(loss.isfinite() & (value < DIVERGED))
        mean = stage.watched.nanmean()
        if not bad.any() or (loss.isfinite().all() and mean < DIVERGED):
            return
        index = int(bad.nonzero()[0])
        place = int(t[index] * BINS * 2 / math.pi)
        low, high = (edge * math.pi / 2 / BINS for edge in (place, place + 1))
        kept = f"the last good checkpoint is {self.checkpoint}"
        if not self.checkpoint.exists():
            kept = "no checkpoint had been written"
        raise UserError(
            f"training diverged at step {trainer.global_step}: loss {loss[index]:.3g}, "
            f"{stage.watched_name} {value[index]:.3g} at t in [{low:.2f}, {high:.2f}]; {kept}. "
            "Lower the learning rate or lengthen the warm-up, and run the command again"
        )


class Logging(Callback):
    """Loss, learning rate and the watched figure, overall and by t-bin, into TensorBoard."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if trainer.global_step % self.every or trainer.logger is None:
            return
        name = stage.watched_name
        figures = {
            "loss": stage.last[0].mean().item(),
            name: stage.watched.nanmean().item(),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        for i, value in enumerate(stage.watched.tolist()):
            if math.isfinite(value):
                figures[f"{name} by t/{i / BINS * math.pi / 2:.2f}"] = value
        trainer.logger.log_metrics(figures, trainer.global_step)


class Previews(Callback):
    """Samples of the averaged weights, always from the same noise, as PNG and in TensorBoard."""

    def __init__(
        self, every: int, folder: Path, draw: Callable[[nn.Module], Any], decoder: Decoder
    ) -> None:
        self.every, self.folder, self.draw, self.decoder = every, folder, draw, decoder
        self.drawn = -1

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every or step == self.drawn or not trainer.is_global_zero:
            return
        self.drawn = step
        averaging = next(c for c in trainer.callbacks if isinstance(c, Averaging))
        with averaged(stage.backbone, averaging.ema):
            drawn = self.draw(stage.backbone)
        picture = self.decoder.preview(drawn)
        media.write_png(picture, self.folder / f"{step:07d}.png")
        trainer.logger.experiment.add_image("samples", picture, step, dataformats="HWC")
        if hasattr(self.decoder, "sound"):
            waveform, rate = self.decoder.sound(drawn)
            trainer.logger.experiment.add_audio("samples", waveform, step, sample_rate=rate)


@contextlib.contextmanager
def averaged(backbone: nn.Module, ema: PowerEMA) -> Iterator[None]:
    """The backbone with its averaged weights and in eval mode, within a `with` block."""
    live = {key: value.detach().clone() for key, value in backbone.state_dict().items()}
    backbone.load_state_dict(ema.average)
    backbone.eval()
    try:
        yield
    finally:
        backbone.load_state_dict(live)
        backbone.train()


class ProgressBar(Callback):
    """One rich bar for the whole stage: steps, it/s, loss and the watched figure.

    Where the output is no terminal it is a line every `every` steps.
    """

    def __init__(self, name: str, every: int) -> None:
        self.name, self.every = name, every
        self.progress = Progress(
            TextColumn(f"[bold]{name}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:.2f} it/s"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        if not trainer.is_global_zero:
            return
        self.task = self.progress.add_task(
            "", total=trainer.max_steps, completed=trainer.global_step, speed=0.0, figures=""
        )
        self.progress.start()

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        task, step = self.progress.tasks[self.task], trainer.global_step
        figures = task.fields["figures"]
        if step % 10 == 0:
            loss, watched = stage.last[0].mean().item(), stage.watched.nanmean().item()
            figures = f"loss {loss:.3f}  {stage.watched_name} {watched:.3f}"
        speed = task.speed or 0.0
        self.progress.update(self.task, completed=step, speed=speed, figures=figures)
        if step % self.every == 0 and not console.is_terminal:
            console.print(f"{self.name} {step}/{task.total}  {speed:.2f} it/s  {figures}")

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        self.progress.stop()

    def on_exception(self, trainer: Trainer, stage: Stage, exception: BaseException) -> None:
        self.progress.stop()
