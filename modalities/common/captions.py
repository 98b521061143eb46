"""Captions as values of the field `Prompt`: what a text encoder makes of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.common.prompt import Prompt, named
from modalities.common.text import TextEncoder
from scm_core.contract.fields import Schema
from scm_core.contract.fields.tokens import Unpacked
from scm_core.data.cache import CACHE, cached, hashed
from scm_core.data.captions import Captions
from scm_core.data.embeddings import Embeddings
from scm_core.data.folders import Classes, labelled
from scm_core.data.shards import File

log = logging.getLogger(__name__)

VERSION = 1  # of what is kept of an encoder


def encoder_of(config: Any) -> TextEncoder | None:
    """The text encoder that a configuration names, if it does and there is one."""
    for key, name in named(config).items():
        if name and (found := TextEncoder(name, key)).exists:
            return found
    return None


def prompt_of(encoder: TextEncoder, cache: Path = CACHE / "embeddings") -> Prompt:
    """The field of a text encoder, which is loaded where it is not known yet."""

    def make() -> tuple[dict[str, Tensor], dict[str, Any]]:
        loaded, found = encoder.loaded, encoder.loaded.empty()
        facts = {"length": loaded.length, "width": found.tokens.shape[2]}
        facts |= {"pooled": found.pooled.shape[1]}
        bfloat = loaded.dtype == torch.bfloat16  # whose range float16 has not
        facts |= {"dtype": "bfloat16" if bfloat else "float16"}
        return dict(found._asdict()), facts

    tensors, facts = cached(cache, [VERSION, encoder.identity], make)
    name, key = encoder.name, encoder.key
    made = Prompt(**facts, encoder=encoder.identity, key=key, place=name)
    empty = made.pack(*Unpacked(**tensors))[0]
    return replace(made, empty=made.written(empty))


def encoded(
    captions: Sequence[str], encoder: TextEncoder, cache: Path = CACHE / "embeddings"
) -> tuple[Prompt, Embeddings]:
    """The field of captions, and its values for each: made once, then read from the cache.

    A caption that is longer than the encoder takes is cut, which is said once. No encoder is left
    in memory.
    """
    made, long = prompt_of(encoder, cache), []

    def encode(texts: list[str]) -> Unpacked:
        loaded = encoder.loaded
        long.extend(text for text in texts if loaded.count(text) > loaded.limit)
        return loaded.encode(texts)

    dtype = getattr(torch, made.dtype)
    values = Embeddings(captions, made, encode, encoder.identity, dtype, cache)
    if long:
        log.warning(
            "%d captions are longer than the %d tokens that the text encoder takes, and are cut: "
            "the first is %r",
            len(long),
            encoder.loaded.limit,
            long[0][:80],
        )
    encoder.release()
    return made, values


def conditioned(
    folder: Path,
    classes: Classes,
    held: set[File],
    captions: Captions | None,
    used: Sequence[File],
    kind: str,
    encoder: TextEncoder | None,
) -> tuple[Schema, dict[str, Tensor | Embeddings], Tensor]:
    """The schema of files that are used, the values of each by the field's name, and which are held
    out, bool (N,): `prompted` where there are captions, or else `data.folders.labelled`."""
    of_files = folder, classes, held
    if captions is None or encoder is None:
        schema, label, out = labelled(*of_files, used, kind)
        return schema, {"label": label}, out
    schema, values, out = prompted(*of_files, captions, used, kind, encoder)
    return schema, {"prompt": values}, out


def stated(values: dict[str, Tensor | Embeddings], encoder: TextEncoder | None) -> dict[str, Any]:
    """What the captions among values are on any machine, where there are any."""
    found = values.get("prompt")
    return {"captions": [encoder.identity, hashed(found.captions)]} if encoder and found else {}


def prompted(
    folder: Path,
    classes: Classes,
    held: set[File],
    captions: Captions,
    used: Sequence[File],
    kind: str,
    encoder: TextEncoder,
) -> tuple[Schema, Embeddings, Tensor]:
    """As `data.folders.labelled`, of captions: the schema, the values of the caption of each file
    that is used, and whether it is held out, bool (N,)."""
    _, _, out = labelled(folder, classes, held, used, kind)
    made, values = encoded([captions[file] for file in used], encoder)
    return {"prompt": replace(made, captions=values.at(out.nonzero()[:, 0]))}, values, out
