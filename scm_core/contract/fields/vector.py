"""A condition that is a vector of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scm_core.base.errors import UserError
from scm_core.contract.fields.field import Control, Field


@dataclass(frozen=True)
class Vector(Field):
    """A float32 vector (B, size); null is all zeros, which no real condition may be."""

    size: int

    form: ClassVar[str] = "NUMBER,NUMBER,..."

    def null(self, n: int, device: torch.device | None = None) -> Tensor:
        return torch.zeros(n, self.size, device=device)

    def embed(self, width: int) -> nn.Module:
        return nn.Linear(self.size, width)

    def parse(self, text: str) -> list[float]:
        """Comma-separated numbers, with or without brackets; not all zero, which is null."""
        try:
            values = [float(part) for part in str(text).strip().strip("[]").split(",")]
        except ValueError:
            values = []
        value = torch.tensor(values)
        if len(values) != self.size or not value.isfinite().all():
            raise UserError(f"{text!r} is not a list of {self.size} comma-separated numbers")
        if not value.any():
            raise UserError(f"{text!r} stands for no condition at all: give other numbers")
        return values

    def parse_json(self, given: Any) -> list[Any]:
        """One vector: a list of its numbers, or a text of them."""
        return self.parse_list(",".join(map(str, given)) if isinstance(given, list) else str(given))

    def json_schema(self) -> dict[str, Any]:
        size = {"minItems": self.size, "maxItems": self.size}
        return {"type": "array", "items": {"type": "number"}, **size}

    def control(self) -> Control:
        hint = f"{self.size} numbers with commas, then Enter; empty: held-out ones, in turn"
        return Control("text", hint=hint)
