"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scm_core.method.samplers import Condition, Model


class Guided:
    """`F_u + scale (F_c - F_u)`: a model like any other, at two evaluations a call.

    Scale 1 is the conditional model itself, at one evaluation. The two halves run as one batch.
    `null(B, device)` is the condition of F_u.
    """

    def __init__(
        self, model: Model, scale: float, null: Callable[[int, torch.device], Condition]
    ) -> None:
        self.model, self.scale, self.null = model, scale, null

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        if self.scale == 1 or not condition:
            return self.model(x, t, condition)
        null = self.null(x.shape[0], x.device)
        both = {key: torch.cat([null[key], condition[key]]) for key in condition}
        F_null, F_given = self.model(x.repeat(2, *[1] * (x.ndim - 1)), t.repeat(2), both).chunk(2)
        return torch.lerp(F_null, F_given, self.scale)
