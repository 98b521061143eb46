"""Embeddings of captions: made once, resumed, and never those of other captions or encoders."""

import logging

import pytest
import torch

from scm_core.contract.fields import Tokens
from scm_core.contract.fields.tokens import Unpacked
from scm_core.data.embeddings import Embeddings

FIELD = Tokens(6, 3, pooled=2)
CAPTIONS = [f"caption {i % 700} of some" + " words" * (i % 3) for i in range(2100)]


class Encoder:
    """Each word as its length, a third of it and its square; the pooled vector counts words."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.seen, self.left = [], fails_after

    def __call__(self, texts: list[str]) -> Unpacked:
        if self.left is not None and (left := self.left - len(texts)) < 0:
            raise KeyboardInterrupt
        elif self.left is not None:
            self.left = left
        self.seen += texts
        words = [[len(word) for word in text.split()] for text in texts]
        tokens = torch.zeros(len(texts), 6, 3)
        mask = torch.zeros(len(texts), 6, dtype=torch.bool)
        for i, one in enumerate(words):
            sizes = torch.tensor(one, dtype=torch.float32)
            tokens[i, : len(one)] = torch.stack([sizes, sizes / 3, sizes**2], 1)
            mask[i, : len(one)] = True
        counts = torch.tensor([[len(one), -len(one)] for one in words]).float()
        return Unpacked(tokens, mask, counts)


def made(cache, encode, captions=CAPTIONS, encoder="one"):
    return Embeddings(captions, FIELD, encode, encoder, cache=cache)


def test_values_are_those_of_the_encoder_and_equal_captions_are_encoded_once(tmp_path):
    encode = Encoder()
    values = made(tmp_path, encode)
    assert sorted(encode.seen) == sorted(set(CAPTIONS)) and len(values) == len(CAPTIONS)
    chosen = torch.tensor([2099, 0, 700, 0, 1234])
    truth = FIELD.pack(*Encoder()([CAPTIONS[i] for i in chosen])).half().float()
    assert torch.equal(values[chosen], truth) and values[chosen].dtype == torch.float32
    part = values.at(torch.tensor([1234, 2099]))
    assert torch.equal(part[torch.tensor([1])], truth[:1]) and len(part) == 2
    again = made(tmp_path, None)  # which nothing asks
    assert torch.equal(again[chosen], truth)


def test_what_is_killed_resumes_with_the_first_group_that_is_missing(tmp_path):
    stopped = Encoder(fails_after=900)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, stopped)
    there = len(list(tmp_path.glob("*.safetensors")))
    encode = Encoder()
    made(tmp_path, encode)
    assert there and 0 < len(encode.seen) < len(set(CAPTIONS))


def test_a_new_caption_costs_its_group_alone_and_another_encoder_all(tmp_path):
    made(tmp_path, Encoder())
    more, other = Encoder(), Encoder()
    made(tmp_path, more, [*CAPTIONS, "one more"])
    assert 0 < len(more.seen) < len(set(CAPTIONS)) and "one more" in more.seen
    made(tmp_path, other, encoder="other")
    assert set(other.seen) == set(CAPTIONS)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_file_is_made_again_with_a_message(tmp_path, damage, caplog):
    values = made(tmp_path, Encoder())
    truth = values[torch.arange(2100)]
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:100] if damage == "cut" else second.read_bytes())
    encode = Encoder()
    with caplog.at_level(logging.WARNING):
        again = made(tmp_path, encode)
    assert 0 < len(encode.seen) < len(set(CAPTIONS)) and "again" in caplog.text
    assert torch.equal(again[torch.arange(2100)], truth)
