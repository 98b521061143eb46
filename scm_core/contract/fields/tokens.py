"""A condition that is a sequence of tokens, such as a text encoder's, and a pooled vector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from scm_core.base.errors import UserError
from scm_core.contract.fields.field import Control, Field
from scm_core.networks.layers.norm import RMSNorm


class Unpacked(NamedTuple):
    """Tokens float32 (B, length, width), which of them there are, bool (B, length), and the pooled
    vector float32 (B, pooled)."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class Tokens(Field):
    """Up to `length` tokens of `width` numbers each, and a `pooled` vector of so many, or of none.

    Values are one float32 tensor (B, length * (1 + width) + pooled), which `pack` makes; null has
    no token, as no real condition may. A kind with an encoder overrides `parse` and `show`.
    """

    length: int
    width: int
    pooled: int = 0

    form: ClassVar[str] = "[[NUMBER,...],...]"

    def __post_init__(self) -> None:
        if min(self.length, self.width) < 1 or self.pooled < 0:
            raise ValueError(f"there are no such sequences as {self}")

    def pack(
        self, tokens: Tensor, mask: Tensor | None = None, pooled: Tensor | None = None
    ) -> Tensor:
        """Values of tokens (B, n, width), n up to `length`; of all, or by a mask, bool (B, n)."""
        mask = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens)
        tokens = torch.where(mask.unsqueeze(-1) > 0, tokens, 0)
        missing = self.length - tokens.shape[1]
        parts = functional.pad(mask, (0, missing)), functional.pad(tokens, (0, 0, 0, missing))
        packed = torch.cat([part.flatten(1) for part in parts], 1)
        return (packed if pooled is None else torch.cat([packed, pooled.to(packed)], 1)).float()

    def unpack(self, values: Tensor) -> Unpacked:
        """The parts of values (B, length * (1 + width) + pooled)."""
        sizes = self.length, self.length * self.width, self.pooled
        mask, tokens, pooled = values.split(sizes, 1)
        return Unpacked(tokens.unflatten(1, (self.length, self.width)), mask > 0, pooled)

    def null(self, n: int, device: torch.device | None = None) -> Tensor:
        return torch.zeros(n, self.length * (1 + self.width) + self.pooled, device=device)

    def embed(self, width: int) -> nn.Module:
        """Of the pooled vector, or else of the tokens' mean (Imagen, arXiv 2205.11487)."""
        return _Pooled(self, width)

    def sequence(self, width: int) -> nn.Module:
        return _Sequence(self, width)

    def parse(self, text: str) -> Tensor:
        """JSON: a list of tokens, each a list of numbers, or {"tokens": ..., "pooled": [...]}."""
        try:
            given = json.loads(text)
            parts = given if isinstance(given, dict) else {"tokens": given}
            tokens = torch.tensor(parts["tokens"], dtype=torch.float32)
            pooled = torch.tensor(parts.get("pooled", []), dtype=torch.float32)
            fits = 0 < len(tokens) <= self.length and tokens.shape[1:] == (self.width,)
            fits &= pooled.shape == (self.pooled,)
            fits &= bool(tokens.isfinite().all() and pooled.isfinite().all())
        except (ValueError, TypeError, KeyError, RuntimeError, RecursionError):
            fits = False
        if not fits:
            also = f" and {self.pooled} numbers as pooled" if self.pooled else ""
            raise UserError(f"{text[:80]!r} is not 1 to {self.length} tokens of {self.width}{also}")
        return self.pack(tokens[None], pooled=pooled[None])[0]

    def parse_json(self, given: Any) -> list[Any]:
        """One sequence, as `parse` takes it."""
        return [self.parse(given if isinstance(given, str) else json.dumps(given))]

    def json_schema(self) -> dict[str, Any]:
        numbers = {"type": "array", "items": {"type": "number"}}
        rows = {**numbers, "minItems": self.width, "maxItems": self.width}
        tokens = {"type": "array", "items": rows, "minItems": 1, "maxItems": self.length}
        if not self.pooled:
            return tokens
        pooled = {**numbers, "minItems": self.pooled, "maxItems": self.pooled}
        properties = {"tokens": tokens, "pooled": pooled}
        return {"type": "object", "properties": properties, "required": [*properties]}

    def validate(self, values: Tensor) -> None:
        """UserError also for a sequence without tokens."""
        super().validate(values)
        if not self.unpack(values).mask.any(1).all():
            raise UserError(f"a sequence has no token, which is no value of {self}")

    def show(self, value: Tensor) -> Any:
        tokens, mask, pooled = self.unpack(value[None])
        rows = tokens[mask].tolist()
        return {"tokens": rows, "pooled": pooled[0].tolist()} if self.pooled else rows

    def control(self) -> Control:
        return Control("text", hint=f"{self.form}, then Enter; empty: held-out ones, in turn")


class _Pooled(nn.Module):
    """Values to (B, width), by the pooled vector or the mean over the tokens that there are."""

    def __init__(self, field: Tokens, width: int) -> None:
        super().__init__()
        self.field = field
        self.linear = nn.Linear(field.pooled or field.width, width)

    def forward(self, values: Tensor) -> Tensor:
        tokens, mask, pooled = self.field.unpack(values)
        if not self.field.pooled:
            there = mask.unsqueeze(-1).to(tokens)
            pooled = (tokens * there).sum(1) / there.sum(1).clamp(min=1)
        return self.linear(pooled)


class _Sequence(nn.Module):
    """Values to tokens (B, length, width) and their mask; normed, for encoders differ in scale."""

    def __init__(self, field: Tokens, width: int) -> None:
        super().__init__()
        self.field = field
        self.norm = RMSNorm(field.width, eps=1e-6)
        self.linear = nn.Linear(field.width, width)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        tokens, mask, _ = self.field.unpack(values)
        return self.linear(self.norm(tokens)), mask
