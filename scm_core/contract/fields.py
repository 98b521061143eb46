"""What a sample is conditioned on: the schema, its null value and dropout for guidance.

A condition is a dict of tensors, one entry per field of the schema. A field's null value stands for
'not given', which is what classifier-free guidance needs (Ho & Salimans 2022, arXiv 2207.12598).
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.base.distributed import shared
from scm_core.base.errors import UserError

Condition = dict[str, Tensor]
NUMBER = re.compile(r"\s*-?[0-9]{1,18}\s*")


def _composed(text: str) -> str:
    """Without regard to how accents are encoded, which differs between systems, and to margins."""
    return unicodedata.normalize("NFC", text).strip()


def _folded(text: str) -> str:
    """The same without regard to case."""
    return unicodedata.normalize("NFC", _composed(text).casefold())


def _number(text: str) -> int | None:
    """The whole number that a text is, if it is one."""
    return int(text) if NUMBER.fullmatch(text) else None


WAYS = (str, _composed, _folded, _number)  # in which a word may be a name, the surest first


@dataclass(frozen=True)
class Label:
    """One of `classes` classes, int64 (B,), counted from 0; the null class is `classes`.

    People name a class by one of `names`, or by its number, of which `first` is the lowest.
    `examples`: see `with_examples`.
    """

    classes: int
    names: tuple[str, ...] = ()
    first: int = 0
    examples: tuple[int, ...] = field(default=(), repr=False)

    def null(self, n: int, device: torch.device | None = None) -> Tensor:
        return torch.full((n,), self.classes, device=device)

    def embedding(self, channels: int) -> nn.Module:
        return nn.Embedding(self.classes + 1, channels)

    @property
    def numbers(self) -> range:
        """What a class may be called instead of its name: nothing where names are numbers too."""
        named = self._named[-1]
        return range(0) if named else range(self.first, self.first + self.classes)

    def parse(self, text: str) -> int:
        """A class by its name, by one that differs in case alone, or by its number.

        Where names are numbers, as 001, a number is a name. UserError with the near ones, or all.
        """
        text = str(text)
        for way, named in zip(WAYS, self._named, strict=True):
            found = named.get(way(text), [])
            if len(found) == 1:
                return found[0]
            if found:
                either = " or ".join(self.names[i] for i in found)
                raise UserError(f"class {text!r} may be {either}: give one as it is written")
        if (number := _number(text)) in self.numbers:
            return number - self.first
        raise UserError(f"no class {text!r}: {self._hint(text)}")

    def parse_list(self, text: str) -> list[int]:
        """The classes of `a`, `a,b` or `[a,b]`; what is a name as it stands is that name alone."""
        words = self._words(text)
        bracketed = text.strip()[:1] == "[" and text.strip()[-1:] == "]"
        if bracketed and not all(_composed(word) in self._named[1] for word in words):
            words = self._words(text.strip()[1:-1])
        return [self.parse(word) for word in words]

    @cached_property
    def _named(self) -> list[dict[Any, list[int]]]:
        """For each of `WAYS`, the classes by what it makes of their names."""
        found = []
        for way in WAYS:
            found.append({})
            for i, name in enumerate(self.names):
                if (key := way(name)) is not None:
                    found[-1].setdefault(key, []).append(i)
        return found

    def _words(self, text: str) -> list[str]:
        """A text between its commas, but for those within a name."""
        parts, words, start = text.split(","), [], 0
        longest = 1 + max((name.count(",") for name in self.names), default=0)
        while start < len(parts):
            ends = range(min(start + longest, len(parts)), start, -1)
            joined = (",".join(parts[start:end]) for end in ends)
            word = next((one for one in joined if _composed(one) in self._named[1]), parts[start])
            words.append(word)
            start += 1 + word.count(",")
        return words

    def _hint(self, text: str) -> str:
        near = difflib.get_close_matches(_folded(text), list(self._named[2]), n=3)
        if near:
            names = [self.names[i] for key in near for i in self._named[2][key]]
            return f"did you mean {' or '.join(names)}?"
        choices = [f"{self.numbers[0]} to {self.numbers[-1]}"] if self.numbers else []
        if self.names:
            choices.append(f"one of: {', '.join(self.names)}")
        return f"give {' or '.join(choices)}"

    def shown(self, value: Tensor) -> str | int:
        """One value, (), as people write it: what `parse` takes."""
        index = int(value)
        return self.names[index] if index < len(self.names) else index + self.first


@dataclass(frozen=True)
class Vector:
    """A float32 vector (B, size); null is all zeros, which no real condition may be.

    `examples`: see `with_examples`.
    """

    size: int
    examples: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def null(self, n: int, device: torch.device | None = None) -> Tensor:
        return torch.zeros(n, self.size, device=device)

    def embedding(self, channels: int) -> nn.Module:
        return nn.Linear(self.size, channels)

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

    def shown(self, value: Tensor) -> list[float]:
        """One value, (size,), as people write it."""
        return value.tolist()


Schema = dict[str, Label | Vector]
KINDS = {"label": Label, "vector": Vector}


def schema_to_dict(schema: Schema) -> dict[str, dict[str, Any]]:
    """The schema in plain containers, for a checkpoint's metadata."""
    plain = {key: {"kind": type(f).__name__.lower(), **asdict(f)} for key, f in schema.items()}
    for entry in plain.values():
        if not entry["examples"]:
            del entry["examples"]
    return plain


def schema_from_dict(plain: dict[str, dict[str, Any]]) -> Schema:
    """The inverse of `schema_to_dict`."""
    schema: Schema = {}
    for key, entry in plain.items():
        entry = dict(entry)
        kind = KINDS[entry.pop("kind")]
        if "names" in entry:
            entry["names"] = tuple(entry["names"])
        examples = entry.pop("examples", ())
        schema[key] = kind(**entry)
        if examples:
            schema[key] = _with(schema[key], torch.tensor(examples))
    return schema


def with_examples(schema: Schema, condition: Condition) -> Schema:
    """The schema with a few real conditions, which go in turn where none is asked for.

    Example i of every field is of one sample: what does not occur together is not made up.
    """
    return {key: _with(field, condition[key]) for key, field in schema.items()}


def _with(field: Label | Vector, values: Tensor) -> Label | Vector:
    """The field with examples, real values of it (N, ...); UserError where they are none."""
    null = field.null(len(values))
    fit = values.shape == null.shape and values.isfinite().all()
    if fit and isinstance(field, Label):
        fit = 0 <= values.min() <= values.max() < field.classes
    if not fit:
        raise UserError(f"conditions {tuple(values.shape)} hold what is no value of {field}")
    plain = values.to(null.dtype).tolist()
    return replace(field, examples=tuple(map(tuple, plain) if isinstance(field, Vector) else plain))


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
