"""Snapshots of averages of two widths, from which that of another is rebuilt after the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from safetensors import safe_open
from torch import Tensor

from scm_core.base.errors import UserError, first_line
from scm_core.base.files import save_tensors
from scm_core.engine.callbacks import Averaging
from scm_core.engine.stages import Stage
from scm_core.method.ema import reconstruction

WIDTHS = 0.05, 0.10  # as EDM2 keeps them
Snapshot = tuple[int, float, Path]  # the step of its phase, its width, its file


class Snapshots(Averaging):
    """An average of one width more, kept in `folder` `count` times a phase, in half precision.

    The folder holds those of one phase, the newest.
    """

    def __init__(self, sigma_rel: float, device: str | None, folder: Path, count: int) -> None:
        super().__init__(sigma_rel, device)
        self.folder, self.count = folder, count

    @property
    def state_key(self) -> str:  # there are several
        return f"{type(self).__name__}-{self.sigma_rel}"

    def on_train_start(self, trainer: Trainer, stage: Stage) -> None:
        super().on_train_start(trainer, stage)
        if not trainer.global_step and trainer.is_global_zero:
            self._remove(but=None)  # of a stage that is started over

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        before = self.ema.step
        super().on_train_batch_end(trainer, stage)
        step, total = self.ema.step, max(1, stage.steps)
        if step * self.count // total > before * self.count // total:
            self._save(trainer, stage.phase, step)

    def _save(self, trainer: Trainer, phase: int, step: int) -> None:
        average = self.whole()
        if not trainer.is_global_zero:
            return
        self._remove(but=phase)
        self.folder.mkdir(parents=True, exist_ok=True)
        half = {k: v.half() if v.is_floating_point() else v for k, v in average.items()}
        half = {key: value.cpu().contiguous() for key, value in half.items()}
        save_tensors(self.folder / f"{phase}-{step}-{self.sigma_rel}.safetensors", half)

    def _remove(self, but: int | None) -> None:
        """The snapshots of this width, but for those of one phase."""
        for old in self.folder.glob(f"*-{self.sigma_rel}.safetensors"):
            if not old.name.startswith(f"{but}-"):
                old.unlink(missing_ok=True)


def found(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder; UserError where there are none."""
    snapshots = []
    for path in sorted(folder.glob("[!.]*-*-*.safetensors")):  # no parts of killed processes
        _, step, width = path.stem.split("-")
        snapshots.append((int(step), float(width), path))
    if not snapshots:
        raise UserError(f"no snapshots in {folder}: train with trainer.ema_snapshots=16")
    return snapshots


def rebuilt(snapshots: list[Snapshot], sigma_rel: float) -> tuple[dict[str, Tensor], float]:
    """The average of that width at the newest snapshot, and what its profile misses of the one
    wanted; see `scm_core.method.ema.reconstruction`."""
    last = max(step for step, *_ in snapshots)
    factors, missed = reconstruction([(s, width) for s, width, _ in snapshots], last, sigma_rel)
    total: dict[str, Tensor] = {}
    for factor, (step, _, path) in zip(factors.tolist(), snapshots, strict=True):
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():
                    value = file.get_tensor(key)
                    if value.is_floating_point():
                        total[key] = total.get(key, 0) + factor * value.double()
                    elif step == last:
                        total[key] = value
        except Exception as error:  # of a file that may hold anything
            raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    return {k: v.float() if v.dtype == torch.float64 else v for k, v in total.items()}, missed
