"""Callbacks that watch a run: what is logged and shown of it."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.throughput import get_available_flops
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.flop_counter import FlopCounterMode

from scm_core.base.console import console
from scm_core.engine.callbacks import OnOptimizerStep
from scm_core.engine.stages.stage import BINS, Stage


class Logging(OnOptimizerStep):
    """Loss, learning rate and the monitored figure, overall and by t-bin, into TensorBoard."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if not self.stepped(trainer) or trainer.global_step % self.every:
            return
        name = stage.monitored_name
        figures = {
            name: stage.monitored.nanmean().item(),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            **{key: trainer.strategy.reduce(value).item() for key, value in stage.metrics.items()},
        }
        for i, value in enumerate(stage.monitored.tolist()):
            if math.isfinite(value):
                figures[f"{name} by t/{i / BINS * math.pi / 2:.2f}"] = value
        trainer.logger.log_metrics(figures, trainer.global_step)


class Speed(OnOptimizerStep):
    """How fast training goes, every so many steps, into TensorBoard.

    Samples a second of all processes, the share of the time that this one waited for data, and what
    its device does: the most memory taken, and floating-point operations a second, which are
    counted in one logged step of ten unless they are compiled, also as a share of the peak where
    Lightning knows it.
    """

    def __init__(self, every: int, counts: bool) -> None:
        self.every, self.counts = every, counts

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        super().on_train_start(trainer, stage)
        self.operations: deque[int] = deque(maxlen=16)  # of a batch; steps differ in what they do
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        self._begin()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.waited += time.perf_counter() - self.ended
        self.counter = contextlib.ExitStack()
        # Rarely, for it takes several steps' time; by the step alone, for it rounds otherwise.
        logged, rest = divmod(trainer.global_step + 1, self.every)
        if self.counts and not rest and logged % 10 == 1:
            counted = self.counter.enter_context(FlopCounterMode(display=False))
            self.counter.callback(lambda: self.operations.append(counted.get_total_flops()))

    def on_train_batch_end(
        self, trainer: Trainer, stage: Stage, outputs: Any, batch: Any, index: int
    ) -> None:
        self.counter.close()
        self.batches += 1
        self.samples += len(batch.x) * trainer.world_size
        if self.stepped(trainer) and trainer.global_step % self.every == 0:
            trainer.logger.log_metrics(self._figures(trainer), trainer.global_step)
            self._begin()
        self.ended = time.perf_counter()

    def _begin(self) -> None:
        self.began = self.ended = time.perf_counter()
        self.batches, self.samples, self.waited = 0, 0, 0.0

    def _figures(self, trainer: Trainer) -> dict[str, float]:
        seconds = time.perf_counter() - self.began
        device = trainer.strategy.root_device
        figures = {
            "speed/samples per second": self.samples / seconds,
            "speed/share of time waiting for data": self.waited / seconds,
        }
        if device.type == "cuda":
            figures["speed/GB of device memory"] = torch.cuda.max_memory_allocated(device) / 1e9
        if self.operations:
            each = sum(self.operations) / len(self.operations)
            rate = each * self.batches / seconds
            figures["speed/TFLOP per second"] = rate / 1e12
            half = trainer.precision_plugin.precision.startswith("bf16")
            peak = get_available_flops(device, torch.bfloat16 if half else torch.float32)
            if peak:
                figures["speed/share of peak"] = rate / peak
        return figures


class ProgressBar(OnOptimizerStep):
    """One rich bar for the whole stage: steps, it/s, loss and the monitored figure.

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
        super().on_train_start(trainer, stage)
        if not trainer.is_global_zero:
            return
        self.task = self.progress.add_task(
            "", total=trainer.max_steps, completed=trainer.global_step, speed=0.0, figures=""
        )
        self.progress.start()

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        if not self.stepped(trainer) or not trainer.is_global_zero:
            return
        task, step = self.progress.tasks[self.task], trainer.global_step
        figures = task.fields["figures"]
        if step % 10 == 0 or step % self.every == 0:
            loss, monitored = stage.metrics["loss"].item(), stage.monitored.nanmean().item()
            figures = f"loss {loss:.3f}  {stage.monitored_name} {monitored:.3f}"
        speed = task.speed or 0.0
        self.progress.update(self.task, completed=step, speed=speed, figures=figures)
        if step % self.every == 0 and not console.is_terminal:
            console.print(f"{self.name} {step}/{task.total}  {speed:.2f} it/s  {figures}")

    def on_train_end(self, trainer: Trainer, stage: Stage) -> None:
        self.progress.stop()

    def on_exception(self, trainer: Trainer, stage: Stage, exception: BaseException) -> None:
        with contextlib.suppress(OSError):  # of a terminal that is closed
            self.progress.stop()
