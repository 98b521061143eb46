"""The condition that is a text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from modalities.common.text import TextEncoder, opened
from scm_core.base.errors import UserError, halved
from scm_core.contract.fields import Control, Tokens
from scm_core.data.embeddings import Embeddings

KEYS = ("data.text_encoder", "pretrained")  # that name a text encoder, the first that is given
KEPT = 256  # prompts of this process whose values are remembered
REMEMBERED: OrderedDict[tuple[str, str], Tensor] = OrderedDict()


@dataclass(frozen=True)
class Prompt(Tokens):
    """A text as the tokens that a text encoder makes of it, and its pooled vector if it has one.

    `encoder` is a hash of that encoder, which the configuration's `key` has named, and `dtype` the
    half precision that its values have. `empty` is the text that stands for null, encoded, in
    base64: as a rule the empty one. Examples are pairs of a text and its values in base64.

    `place` is where the encoder lies on this machine, and `captions` are those whose texts `show`
    knows; neither travels.
    """

    encoder: str = ""
    key: str = KEYS[0]
    dtype: str = "float16"
    empty: str = field(default="", repr=False)
    place: str | None = field(default=None, compare=False, repr=False)
    captions: Embeddings | None = field(default=None, compare=False, repr=False)

    form: ClassVar[str] = "TEXT"

    def null(self, n: int, device: torch.device | None = None) -> Tensor:
        """What the encoder makes of no text: guidance is then that of a pretrained pipeline."""
        return self._null.to(device or "cpu").repeat(n, 1)

    @cached_property
    def _null(self) -> Tensor:
        return self.read(self.empty)[None] if self.empty else super().null(1)

    def parse(self, text: str) -> Tensor:
        """The values of one text; UserError without the encoder, and for one that is too long."""
        return self._encoded([text])[0]

    def parse_list(self, text: str) -> list[Tensor]:
        """One text, or those of a JSON list of them."""
        return self.parse_json(text)

    def parse_json(self, given: Any) -> list[Tensor]:
        return self._encoded(_listed(given))

    def check(self, given: Any) -> None:
        """The same without encoding anything; UserError also for more than one request takes."""
        if len(texts := _listed(given)) > KEPT:
            raise UserError(f"{len(texts)} prompts are more than {KEPT} at a time")
        for one in texts:
            self._checked(one)

    def json_schema(self) -> dict[str, Any]:
        one = {"type": "string", "minLength": 1}
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}

    def control(self) -> Control:
        return Control("text", hint="a text, then Enter; empty: held-out captions, in turn")

    def show(self, value: Tensor) -> str:
        """The text, where this process or the checkpoint knows it, or else a hash of its values."""
        here = value.float().cpu()
        for (encoder, text), known in reversed(REMEMBERED.items()):
            if encoder == self.encoder and torch.equal(known.float().cpu(), here):
                return text
        if torch.equal(here, self._null[0].float().cpu()):
            return ""
        digest = _digest(value)
        return self._shown.get(digest) or f"the prompt {digest.hex()[:16]}"

    @cached_property
    def _shown(self) -> dict[bytes, str]:
        """The texts of examples and captions, by their values."""
        found = {_digest(self.read(values)): text for text, values in self.examples}
        if self.captions is not None:
            texts = self.captions.captions
            for i in dict(zip(reversed(texts), reversed(range(len(texts))), strict=True)).values():
                found[_digest(self.captions[torch.tensor([i])][0])] = texts[i]
        return found

    def cycle(self, n: int) -> Tensor:
        if not self.examples:
            return self.null(n)
        values = torch.stack([self.read(values) for _, values in self.examples])
        return values[torch.arange(n) % len(values)]

    def with_examples(self, values: Tensor) -> Self:
        self.validate(values)
        return replace(self, examples=tuple((self.show(v), self.written(v)) for v in values))

    def configured(self, config: Any) -> Self:
        """With the encoder that the configuration names, if it does; UserError for another one."""
        place = named(config)[self.key]
        if place and opened(place, self.key).identity != self.encoder:
            raise UserError(
                f"{self.key}={place} has another text encoder than the model was trained with"
            )
        return replace(self, place=place)

    def schema(self) -> dict[str, Any]:
        keys = ("length", "width", "pooled", "encoder", "key", "dtype", "empty")
        plain = {"kind": self.kind(), **{key: getattr(self, key) for key in keys}}
        return {**plain, "examples": self.examples} if self.examples else plain

    @classmethod
    def from_schema(cls, plain: dict[str, Any]) -> Self:
        given = {key: value for key, value in plain.items() if key != "kind"}
        given["examples"] = tuple((str(text), str(v)) for text, v in given.get("examples", ()))
        found = cls(**given)
        for packed in [found.empty, *(values for _, values in found.examples)]:
            found.read(packed)  # ValueError for what is none
        return found

    def __deepcopy__(self, _: Any) -> Self:
        return self  # networks are copied, and it is as good as its values

    def _encoder(self) -> TextEncoder:
        if not self.place:
            raise UserError(
                f"to read a prompt takes the text encoder that the model was trained with: name it "
                f"by {self.key}="
            )
        return opened(self.place, self.key)

    def _checked(self, text: str) -> str:
        """The text in one line; UserError for one that the encoder would cut, and for none."""
        text = " ".join(text.split())
        if not text:
            raise UserError("the prompt is empty: say what is wanted")
        if halved(text):
            raise UserError(f"the prompt {text[:40]!r} has half of a character")
        known = (self.encoder, text) in REMEMBERED
        loaded = None if known else self._encoder().loaded
        if loaded and (count := loaded.count(text)) > loaded.limit:
            raise UserError(
                f"the prompt {text[:40]!r}... has {count} tokens, more than the {loaded.limit} "
                "that the text encoder takes: shorten it"
            )
        return text

    def _encoded(self, texts: Sequence[str]) -> list[Tensor]:
        """The values of texts, each of which is encoded once."""
        texts = [self._checked(text) for text in texts]
        new = [one for one in dict.fromkeys(texts) if (self.encoder, one) not in REMEMBERED]
        if new:
            values = self._rounded(self.pack(*self._encoder().loaded.encode(new)))
            REMEMBERED.update(
                {(self.encoder, text): v for text, v in zip(new, values, strict=True)}
            )
        found = [REMEMBERED[self.encoder, text] for text in texts]
        for text in texts:
            REMEMBERED.move_to_end((self.encoder, text))
        while len(REMEMBERED) > KEPT:
            REMEMBERED.popitem(last=False)
        return found

    def _rounded(self, values: Tensor) -> Tensor:
        """At the precision at which captions are kept."""
        return values.to(getattr(torch, self.dtype)).float()

    def written(self, value: Tensor) -> str:
        """One value in base64: its mask, then in half precision tokens and pooled vector."""
        tokens, mask, pooled = self.unpack(value[None].cpu())
        half = torch.cat([tokens[mask].flatten(), pooled[0]]).to(getattr(torch, self.dtype))
        return base64.b64encode(_bytes(mask.to(torch.uint8)) + _bytes(half)).decode()

    def read(self, text: str) -> Tensor:
        """The inverse; ValueError for what is no value of this field."""
        content = bytearray(base64.b64decode(text, validate=True))
        if self.dtype not in ("float16", "bfloat16") or len(content) < self.length:
            raise ValueError("it holds no prompt")
        mask = torch.frombuffer(content, dtype=torch.uint8, count=self.length)[None] > 0
        count = int(mask.sum()) * self.width
        if len(content) != self.length + 2 * (count + self.pooled):
            raise ValueError("it holds no prompt")
        half = torch.frombuffer(content[self.length :], dtype=getattr(torch, self.dtype)).float()
        tokens = torch.zeros(1, self.length, self.width)
        tokens[mask] = half[:count].view(-1, self.width)
        return self.pack(tokens, mask, half[None, count:] if self.pooled else None)[0]


def _listed(given: Any) -> list[str]:
    """The texts of a list, of a JSON list of texts, or the one text."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            given = found
    return [str(one) for one in given] if given and isinstance(given, list) else [str(given)]


def named(config: Any) -> dict[str, str | None]:
    """What each of the `KEYS` is in a configuration."""
    found = {}
    for key in KEYS:
        value = config
        for name in key.split("."):
            value = getattr(value, name, None)
        found[key] = value
    return found


def _digest(value: Tensor) -> bytes:
    return hashlib.sha256(_bytes(value.float())).digest()


def _bytes(values: Tensor) -> bytes:
    return values.cpu().contiguous().view(torch.uint8).numpy().tobytes()
