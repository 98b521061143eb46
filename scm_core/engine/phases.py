"""Where a phase of a training begins."""

from __future__ import annotations

from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from scm_core.engine import sharding
from scm_core.engine.callbacks import Averaging
from scm_core.engine.stages.stage import Stage


class Phases(Callback):
    """Has a stage enter its phases, in a resumed run too.

    Where a phase begins after another, training starts anew from the EMA weights: without
    Adam's state, and with an EMA of its own. No checkpoint is written between that and the
    phase's first step, so that what a resumed run finds there is what the phase before has left.
    """

    def __init__(self, averaging: Averaging, *more: Averaging) -> None:
        self.averaging, self.averages = averaging, (averaging, *more)
        self.entered: int | None = None  # by this process

    def on_train_batch_start(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        number = stage.at(trainer.global_step)
        if number == self.entered:
            return
        optimizer = trainer.optimizers[0]
        if number and trainer.global_step == stage.starts[number]:
            sharding.overwrite(stage.backbone, self.averaging.ema.average)
            for averaging in self.averages:
                averaging.ema.step = 0
            optimizer.state.clear()
        stage.enter(number)
        for group in optimizer.param_groups:
            group["betas"] = stage.betas
        if len(stage.phases) > 1 and isinstance(trainer.strategy, DDPStrategy):
            # DDP waits for the gradients of all that was to be trained when it wrapped the stage.
            trainer.strategy.model = stage
            trainer.strategy.configure_ddp()
        self.entered = number
