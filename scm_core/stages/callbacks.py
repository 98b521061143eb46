"""What happens around the training steps, so that a run can stop anywhere and go on."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from scm_core.data import Shuffled
from scm_core.ema import PowerEMA
from scm_core.errors import UserError
from scm_core.stages.stage import Stage


class AtSteps(Callback):
    """What happens after an optimiser's step and not in the middle of an accumulation."""

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        self.seen = trainer.global_step  # which a resumed run does not know any sooner

    def stepped(self, trainer: Trainer) -> bool:
        """Whether the batch that has just ended completed a step; to be asked once a batch."""
        before, self.seen = self.seen, trainer.global_step
        return self.seen > before


class Averaging(AtSteps):
    """The power-function average of the backbone, in every checkpoint; it lies on `device`."""

    def __init__(self, sigma_rel: float, device: str | None = None) -> None:
        self.sigma_rel, self.device = sigma_rel, device
        self.ema: PowerEMA | None = None
        self.restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        self.ema = PowerEMA(stage.backbone, self.sigma_rel, self.device)
        if self.restored:
            self.ema.load_state_dict(self.restored)

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if self.stepped(trainer):
            self.ema.update()

    def state_dict(self) -> dict[str, Any]:
        return self.ema.state_dict() if self.ema else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restored = state
        if self.ema and state:
            self.ema.load_state_dict(state)


class Saving(AtSteps, ModelCheckpoint):
    """`last.ckpt` every so many steps and when interrupted, each replacing the one before.

    `settle` raises UserError where the state must not be kept.
    """

    def __init__(self, folder: Path, every: int, settle: Callable[[Trainer], None]) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            every_n_train_steps=every,
            save_top_k=1,
            save_on_exception=True,
            enable_version_counter=False,
        )
        self.settle = settle

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
        self.settle(trainer)
        began = time.perf_counter()
        try:
            super()._save_checkpoint(trainer, filepath)
        except OSError as error:  # the file is replaced whole or not at all
            raise UserError(
                f"cannot write {filepath}: {error.strerror or error}; the checkpoint before it is "
                "whole: free some room and run the command again"
            ) from error
        spent = {"speed/seconds to write a checkpoint": time.perf_counter() - began}
        trainer.logger.log_metrics(spent, trainer.global_step)


class Seeding(AtSteps):
    """All that a step draws, and its batch, depend on the seed and the step alone.

    So a resumed run does what an uninterrupted one does, bit for bit on one CPU: it needs no state
    of generators, and starts within the epoch where the last checkpoint was written.
    """

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        super().on_train_start(trainer, stage)
        self.part = 0
        self._place(trainer)
        loader = trainer.train_dataloader
        if isinstance(loader.sampler, Shuffled) and loader.num_workers:
            iter(trainer.fit_loop._data_fetcher)  # its workers had begun before this, elsewhere
        self._seed(trainer)

    def on_train_epoch_start(self, trainer: Trainer, stage: Stage) -> None:
        self._place(trainer)

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        self.part = 0 if self.stepped(trainer) else self.part + 1
        self._seed(trainer)

    def _place(self, trainer: Trainer) -> None:
        """The next pass through the data begins where the run is, and Lightning's count with it.

        Its own may be that of a whole epoch, where a run is prolonged that had ended with one, or
        of batches of another size.
        """
        loader, accumulate = trainer.train_dataloader, trainer.accumulate_grad_batches
        if isinstance(loader.sampler, Shuffled):
            epoch, steps = divmod(trainer.global_step, -(-len(loader) // accumulate))
            passed = steps * accumulate
            loader.sampler.seed, loader.sampler.epoch = self.seed, epoch
            loader.sampler.skip = passed * loader.batch_size
            loop = trainer.fit_loop.epoch_loop
            loop.batch_progress.is_last_batch = False
            for count in ("ready", "started", "processed", "completed"):
                setattr(loop.batch_progress.current, count, passed)
            if loop.restarted_on_train_batch_end:  # then the loop will count one more
                loop.batch_progress.current.completed -= 1

    def _seed(self, trainer: Trainer) -> None:
        facts = (self.name, self.seed, trainer.global_step, self.part)
        seed = random.Random(repr(facts)).getrandbits(32)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


class Interrupt(AtSteps):
    """Ctrl-C ends the run after the step it falls into, so that its checkpoint is whole.

    All processes end after the same step. A second Ctrl-C does not wait.
    """

    asked = False
    before: Any = signal.default_int_handler

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        self.before = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if self.stepped(trainer) and any_process(trainer, self.asked):
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


def any_process(trainer: Trainer, true: bool) -> bool:
    """Whether it is true in any of the processes, which all have to ask."""
    return trainer.strategy.reduce_boolean_decision(true, all=False)
