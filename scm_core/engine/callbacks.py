"""What happens around the training steps, so that a run can stop anywhere and resume."""

from __future__ import annotations

import random
import signal
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from torch import Tensor

from scm_core.base import console
from scm_core.data.batches import Shuffled
from scm_core.engine.sharding import gathered, local, scattered
from scm_core.engine.stages.stage import Stage
from scm_core.method.ema import PowerEMA


class OnOptimizerStep(Callback):
    """What happens after an optimiser's step and not in the middle of an accumulation."""

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        self.seen = trainer.global_step  # which a resumed run does not know any sooner

    def stepped(self, trainer: Trainer) -> bool:
        """Whether the batch that has just ended completed a step; to be asked once a batch."""
        before, self.seen = self.seen, trainer.global_step
        return self.seen > before


class Averaging(OnOptimizerStep):
    """The backbone's EMA, in every checkpoint; it lies on `device`.

    Of a sharded backbone each process averages its own shards; a checkpoint has them whole.
    """

    def __init__(self, sigma_rel: float, device: str | None = None) -> None:
        self.sigma_rel, self.device = sigma_rel, device
        self.ema: PowerEMA | None = None
        self.restored: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        self.live = stage.backbone.state_dict()
        shards = {key: local(value) for key, value in self.live.items()}
        self.ema = PowerEMA(shards, self.sigma_rel, self.device)
        if self.restored:
            self._restore(self.restored)

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if self.stepped(trainer):
            self.ema.update()

    def whole(self) -> dict[str, Tensor]:
        """The EMA weights, put together from all processes, which all have to ask for them."""
        return {key: gathered(value, self.live[key]) for key, value in self.ema.average.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.ema.state_dict() | {"average": self.whole()} if self.ema else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restored = state
        if self.ema and state:
            self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        whole = state["average"]
        shards = {key: scattered(whole[key], value) for key, value in self.live.items()}
        self.ema.load_state_dict(state | {"average": shards})


class Seeding(OnOptimizerStep):
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
            # Its workers had begun before this, elsewhere, and nothing public starts them anew
            # (tests/engine/test_lightning.py).
            iter(trainer.fit_loop._data_fetcher)
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


class Stopped(KeyboardInterrupt):
    """Raised after one step in all processes, whose state is whole then."""


class Interrupt(OnOptimizerStep):
    """Ctrl-C, or another signal to stop, ends the run after the step it falls into.

    All processes end after the same step. A second Ctrl-C does not wait, and leaves the last
    checkpoint as it is.
    """

    asked = False
    signals = (signal.SIGINT, *console.STOPS)

    def on_fit_start(self, trainer: Trainer, stage: Stage) -> None:
        self.before = {number: signal.getsignal(number) for number in self.signals}

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        super().on_train_start(trainer, stage)
        console.answer(self.signals, self._ask)  # in the place of Lightning's own by now

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if self.stepped(trainer) and any_process(trainer, self.asked):
            raise Stopped

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def any_process(trainer: Trainer, true: bool) -> bool:
    """Whether it is true in any of the processes, which all have to ask."""
    return trainer.strategy.reduce_boolean_decision(true, all=False)
