"""The consistency loss as it loses, to compare with."""

from __future__ import annotations

from torch import Tensor

from scm_core.method.objectives import Student
from scm_core.method.objectives.base import Batch
from scm_core.method.objectives.consistency import Consistency


class Unmasked(Consistency):
    """As `consistency`, of samples that nothing clips."""

    def loss(self, student: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        bounds, student.bounds = student.bounds, None
        try:
            return super().loss(student, batch)
        finally:
            student.bounds = bounds


class Momentum(Consistency):
    """As `consistency`, by Adam's usual betas."""

    betas = (0.9, 0.99)
