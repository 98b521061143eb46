"""A condition that is one of a few classes, and how people name a class."""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scm_core.base.errors import UserError
from scm_core.contract.fields.field import Control, Field

NUMBER = re.compile(r"\s*-?[0-9]{1,18}\s*")
LONG = 1 << 10  # characters, above which no class has a name: they would take long to put in order


def _composed(text: str) -> str:
    """Without regard to how accents are encoded, which differs between systems, and to margins."""
    text = text.strip()
    return text if len(text) > LONG else unicodedata.normalize("NFC", text).strip()


def _folded(text: str) -> str:
    """The same without regard to case."""
    return _composed(_composed(text).casefold())


def _number(text: str) -> int | None:
    """The whole number that a text is, if it is one."""
    return int(text) if NUMBER.fullmatch(text) else None


WAYS = (str, _composed, _folded, _number)  # in which a word may be a name, the surest first


@dataclass(frozen=True)
class Label(Field):
    """One of `classes` classes, int64 (B,), counted from 0; the null class is `classes`.

    People name a class by one of `names`, or by its number, of which `first` is the lowest.
    """

    classes: int
    names: tuple[str, ...] = ()
    first: int = 0

    form: ClassVar[str] = "CLASS"
    enumerable: ClassVar[bool] = True

    def null(self, n: int, device: torch.device | None = None) -> Tensor:
        return torch.full((n,), self.classes, device=device)

    def embed(self, width: int) -> nn.Module:
        return nn.Embedding(self.classes + 1, width)

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

    def validate(self, values: Tensor) -> None:
        """UserError also for numbers that are no class; the null class is none."""
        super().validate(values)
        if len(values) and not 0 <= values.min() <= values.max() < self.classes:
            raise UserError(f"classes {values.min()} to {values.max()} are not all of {self}")

    def show(self, value: Tensor | int) -> str | int:
        """One value, (), as people write it: what `parse` takes."""
        index = int(value)
        return self.names[index] if index < len(self.names) else index + self.first

    def cycle(self, n: int) -> Tensor:
        """`n` values that cycle through the examples, or else through all classes."""
        return super().cycle(n) if self.examples else torch.arange(n) % self.classes

    def control(self) -> Control:
        choices = [self.show(i) for i in range(self.classes)]
        return Control("choice" if self.names else "slider", choices)

    def json_schema(self) -> dict[str, Any]:
        """One class, or a list of them that cycles."""
        one = {"enum": [*self.names, *self.numbers]}
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
