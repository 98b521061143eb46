"""A plugin that brings a condition field of its own kind: prompts, of a few words that it knows."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pairs_plugin
import torch

from scm_core.base.errors import UserError
from scm_core.contract.fields import Control, Tokens
from scm_core.data.batches import InMemory, per_channel

WORDS = ("rising", "falling", "early", "late")


@dataclass(frozen=True)
class Prompt(Tokens):
    """Words as one-hot tokens, which stand in the place of a text encoder's."""

    form: ClassVar[str] = "WORDS"

    def parse(self, text):
        words = text.split()
        if not 0 < len(words) <= self.length or not {*words} <= {*WORDS}:
            raise UserError(f"{text!r} is not 1 to {self.length} of {', '.join(WORDS)}")
        return self.pack(torch.eye(len(WORDS))[[WORDS.index(word) for word in words]][None])[0]

    def parse_json(self, given):
        return self.parse_list(str(given))

    def json_schema(self):
        return {"type": "string", "pattern": "[a-z ]+"}

    def show(self, value):
        tokens, mask, _ = self.unpack(value[None])
        return " ".join(WORDS[i] for i in tokens[mask].argmax(-1).tolist())

    def control(self):
        return Control("text", hint="a prompt")


PROMPT = Prompt(3, len(WORDS))


def read(split):
    """The media of pairs, and in words where on the circle they start."""
    pairs, condition = pairs_plugin.read(split)
    prompts = [
        f"{WORDS[int(x < 0)]} {WORDS[2 + int(y < 0)]}" for x, y in condition["place"].tolist()
    ]
    return pairs, {"prompt": torch.stack([PROMPT.parse(prompt) for prompt in prompts])}


SPEC = replace(
    pairs_plugin.SPEC,
    name="prompts",
    fields=(Prompt,),
    build_data=lambda config: InMemory(
        read, {"prompt": PROMPT}, pairs_plugin.PairsCodec, 8, per_channel
    ),
)
