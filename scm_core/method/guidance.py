"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

from __future__ import annotations

import torch
from torch import Tensor

from scm_core.contract.fields import Condition, Schema, null_condition
from scm_core.method.samplers import Model


class Guided:
    """`F_u + scale (F_c - F_u)`: a model like any other, at two evaluations a call.

    Scale 1 is the conditional model itself, at one evaluation. The two halves run as one batch.
    """

    def __init__(self, model: Model, scale: float, schema: Schema) -> None:
        self.model, self.scale, self.schema = model, scale, schema

    def __call__(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        if self.scale == 1 or not condition:
            return self.model(x, t, condition)
        null = null_condition(self.schema, x.shape[0], x.device)
        both = {key: torch.cat([null[key], condition[key]]) for key in condition}
        F_null, F_given = self.model(x.repeat(2, *[1] * (x.ndim - 1)), t.repeat(2), both).chunk(2)
        return torch.lerp(F_null, F_given, self.scale)
