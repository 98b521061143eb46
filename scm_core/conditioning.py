"""What a sample is conditioned on: the schema, its null value and dropout for guidance.

A condition is a dict of tensors, one entry per field of the schema. A field's null value stands for
'not given', which is what classifier-free guidance needs (Ho & Salimans 2022, arXiv 2207.12598).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.errors import UserError
from scm_core.parallel import shared

Condition = dict[str, Tensor]


@dataclass(frozen=True)
class Label:
    """One of `classes` classes, int64 (B,), counted from 0; the null class is `classes`.

    People name a class by one of `names`, or by its number, of which `first` is the lowest.
    """

    classes: int
    names: tuple[str, ...] = ()
    first: int = 0

    def null(self, n: int, device: torch.device | None = None) -> Tensor:
        return torch.full((n,), self.classes, device=device)

    def embedding(self, channels: int) -> nn.Module:
        return nn.Embedding(self.classes + 1, channels)

    def parse(self, text: str) -> int:
        """A class by its number or its name; UserError names the choices."""
        lowered = [name.lower() for name in self.names]
        if str(text).lower() in lowered:
            return lowered.index(str(text).lower())
        try:
            index = int(text) - self.first
        except ValueError:
            index = -1
        if 0 <= index < self.classes:
            return index
        last = self.first + self.classes - 1
        names = f" or one of: {', '.join(self.names)}" if self.names else ""
        raise UserError(f"no class {text!r}: give {self.first} to {last}{names}")

    def shown(self, value: Tensor) -> str | int:
        """One value, (), as people write it: what `parse` takes."""
        index = int(value)
        return self.names[index] if index < len(self.names) else index + self.first


@dataclass(frozen=True)
class Vector:
    """A float32 vector (B, size); null is all zeros, which no real condition may be."""

    size: int

    def null(self, n: int, device: torch.device | None = None) -> Tensor:
        return torch.zeros(n, self.size, device=device)

    def embedding(self, channels: int) -> nn.Module:
        return nn.Linear(self.size, channels)

    def parse(self, text: str) -> list[float]:
        """Comma-separated numbers."""
        try:
            values = [float(part) for part in str(text).strip("[]").split(",")]
        except ValueError:
            values = []
        if len(values) != self.size:
            raise UserError(f"{text!r} is not a list of {self.size} comma-separated numbers")
        return values

    def shown(self, value: Tensor) -> list[float]:
        """One value, (size,), as people write it."""
        return value.tolist()


Schema = dict[str, Label | Vector]
KINDS = {"label": Label, "vector": Vector}


def schema_to_dict(schema: Schema) -> dict[str, dict[str, Any]]:
    """The schema in plain containers, for a checkpoint's metadata."""
    return {key: {"kind": type(f).__name__.lower(), **asdict(f)} for key, f in schema.items()}


def schema_from_dict(plain: dict[str, dict[str, Any]]) -> Schema:
    """The inverse of `schema_to_dict`."""
    schema: Schema = {}
    for key, entry in plain.items():
        entry = dict(entry)
        kind = KINDS[entry.pop("kind")]
        if "names" in entry:
            entry["names"] = tuple(entry["names"])
        schema[key] = kind(**entry)
    return schema


def null_condition(schema: Schema, n: int, device: torch.device | None = None) -> Condition:
    """`n` conditions of which nothing is given."""
    return {key: field.null(n, device) for key, field in schema.items()}


def drop_condition(schema: Schema, condition: Condition, probability: float) -> Condition:
    """The condition, made null for a random share of the samples (trains the unconditional F)."""
    n = len(next(iter(condition.values()))) if condition else 0
    if not n or not probability:
        return condition
    first = next(iter(condition.values()))
    drop = shared(lambda rows: torch.rand(rows, device=first.device), n) < probability
    null = null_condition(schema, n, first.device)
    return {
        key: torch.where(drop.reshape(-1, *[1] * (value.ndim - 1)), null[key], value)
        for key, value in condition.items()
    }


class ConditionEmbedding(nn.Module):
    """The sum of one learned embedding per field of the schema, (B, channels)."""

    def __init__(self, schema: Schema, channels: int) -> None:
        super().__init__()
        self.schema = schema
        self.fields = nn.ModuleDict({k: f.embedding(channels) for k, f in schema.items()})

    def forward(self, condition: Condition | None, like: Tensor) -> Tensor | float:
        """`like` is any (B, ...) tensor, for the batch size when `condition` is None (all null)."""
        if condition is None:
            condition = null_condition(self.schema, like.shape[0], like.device)
        return sum((embed(condition[key]) for key, embed in self.fields.items()), 0.0)
