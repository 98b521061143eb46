"""What every kind of condition field can do, from a text to a tensor to an embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from scm_core.base.errors import UserError


@dataclass(frozen=True)
class Control:
    """A form's control: one of the `choices`, a slider over those numbers, or a text.

    Each of its values is a text, or what makes one by `str`, that `Field.parse_list` takes.
    """

    kind: Literal["choice", "slider", "text"]
    choices: Sequence[str | int] = ()
    hint: str = ""


@dataclass(frozen=True)
class Field(ABC):
    """One entry of a condition; a plugin's own kind is a frozen dataclass derived from this one.

    Values are one tensor (B, ...) of the shape and dtype of `null`, which stands for 'not given'.
    What a field is built from is plain (numbers, texts, tuples), for it travels in checkpoints.
    `examples` are a few real values as plain containers, see `with_examples`.
    """

    examples: tuple = field(default=(), repr=False, kw_only=True)

    form: ClassVar[str] = "VALUE"  # how a value is written on the command line
    enumerable: ClassVar[bool] = False  # whether `cycle` knows real values without examples

    @abstractmethod
    def null(self, n: int, device: torch.device | None = None) -> Tensor:
        """`n` null values, (n, ...), for classifier-free guidance (arXiv 2207.12598)."""

    @abstractmethod
    def embed(self, width: int) -> nn.Module:
        """A new module from values (B, ...) to (B, width), which is added to the time embedding."""

    def sequence(self, width: int) -> nn.Module | None:
        """A new module from values to tokens (B, L, width) and their mask, bool (B, L), for
        cross-attention; None for a field that is no sequence."""
        return None

    @abstractmethod
    def parse(self, text: str) -> Any:
        """One value, a tensor or plain containers, from a text; UserError for what is none."""

    def parse_list(self, text: str) -> list[Any]:
        """The values of a command line's text: one, unless this kind has a syntax for several."""
        return [self.parse(text)]

    def parse_json(self, given: Any) -> list[Any]:
        """The values that a request gives: of a list's elements, else of the text."""
        if given and isinstance(given, list):
            return [self.parse(str(one)) for one in given]
        return self.parse_list(str(given))

    def check(self, given: Any) -> None:
        """UserError where `parse_json` would refuse; a kind may know that without making values."""
        self.validate(torch.stack([torch.as_tensor(one) for one in self.parse_json(given)]))

    def configured(self, config: Any) -> Self:
        """This field with what it opens on this machine, as a finished configuration names it."""
        return self

    def json_schema(self) -> dict[str, Any]:
        """What `parse_json` takes, as JSON Schema."""
        return {"type": "string"}

    def validate(self, values: Tensor) -> None:
        """UserError for values (N, ...) of another shape or dtype, and for NaN or Inf."""
        null = self.null(len(values))
        same = values.shape == null.shape and values.dtype == null.dtype
        if same and not values.isfinite().all():
            raise UserError(f"a value of {self} holds NaN or Inf")
        if not same:
            raise UserError(f"{values.dtype} {tuple(values.shape)} is no value of {self}")

    def show(self, value: Tensor) -> Any:
        """One value, (...), as people write it, in plain containers."""
        return value.tolist()

    def control(self) -> Control:
        """What a form asks for this field by."""
        return Control("text", hint=self.form)

    def cycle(self, n: int) -> Tensor:
        """`n` values that cycle through the examples; null ones where there are none."""
        if not self.examples:
            return self.null(n)
        examples = torch.tensor(self.examples, dtype=self.null(0).dtype)
        return examples[torch.arange(n) % len(examples)]

    def with_examples(self, values: Tensor) -> Self:
        """This field with real values (N, ...) to cycle through; UserError where they are none."""
        values = values.to(self.null(0).dtype)
        self.validate(values)
        return replace(self, examples=_tuples(values.tolist()))

    @classmethod
    def kind(cls) -> str:
        """Its name in checkpoints."""
        return cls.__name__.lower()

    def schema(self) -> dict[str, Any]:
        """This field in plain containers, for a checkpoint's metadata."""
        plain = {"kind": self.kind(), **asdict(self)}
        examples = plain.pop("examples")
        return {**plain, "examples": examples} if examples else plain

    @classmethod
    def from_schema(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `schema`, of what came through JSON; its kind is this one."""
        given = {key: _tuples(value) for key, value in plain.items() if key != "kind"}
        examples = given.pop("examples", ())
        found = cls(**given)
        return found.with_examples(torch.tensor(examples)) if examples else found


def _tuples(plain: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(map(_tuples, plain)) if isinstance(plain, list | tuple) else plain
