"""What a text encoder makes of captions: made once, kept on disk, and mapped from there."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import islice
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from scm_core.contract.fields import Tokens
from scm_core.contract.fields.tokens import Unpacked
from scm_core.data.cache import CACHE, keep, kept, place

log = logging.getLogger(__name__)

VERSION = 1  # of what is kept: another one is made anew
GROUP = 256  # captions in a file of the cache, on average
BATCH = 32  # texts that an encoder is given at a time

Encode = Callable[[list[str]], Unpacked]


class Embeddings:
    """The values of a field for captions, of which equal ones are encoded and kept once.

    They are kept in half precision by groups, each under a hash of its captions and of the
    `encoder`, so that those of other captions or another encoder are never used. What was
    interrupted resumes with the first group that is missing; a caption that is added costs those of
    its group. `encode` is called for what is missing alone.
    """

    def __init__(
        self,
        captions: Sequence[str],
        field: Tokens,
        encode: Encode,
        encoder: str,
        dtype: torch.dtype = torch.float16,
        cache: Path = CACHE / "embeddings",
    ) -> None:
        self.captions, self.field = list(captions), field
        groups = list(_groups(set(captions)))
        places = [place(cache, [VERSION, encoder, field.length, group]) for group in groups]
        tables = [_read(path, field, group) for path, group in zip(places, groups, strict=True)]
        missing = [i for i, table in enumerate(tables) if table is None]
        for i in track(missing, "encoding captions", transient=True, disable=not missing):
            made = _table(groups[i], field, encode, dtype)
            keep(places[i], (made, {"of": places[i].stem}))
            tables[i] = _read(places[i], field, groups[i]) or made  # mapped now, out of memory
        self.tables = tables
        self.starts = [table["mask"].sum(1).cumsum(0) - table["mask"].sum(1) for table in tables]
        rows = {text: (i, j) for i, group in enumerate(groups) for j, text in enumerate(group)}
        self.rows = torch.tensor([rows[text] for text in self.captions]).view(-1, 2)

    def at(self, chosen: Tensor) -> Embeddings:
        """Those at these places, int64 (N,)."""
        part = copy(self)
        part.captions, part.rows = [self.captions[i] for i in chosen], self.rows[chosen]
        return part

    def __len__(self) -> int:
        """How many captions, equal ones included."""
        return len(self.captions)

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """The field's values (B, ...), float32, of the captions at these places, int64 (B,)."""
        width, pooled = self.field.width, self.field.pooled
        tokens = torch.zeros(len(chosen), self.field.length, width)
        mask = torch.zeros(len(chosen), self.field.length, dtype=torch.bool)
        also = torch.zeros(len(chosen), pooled)
        for k, (i, j) in enumerate(self.rows[chosen].tolist()):
            table, start = self.tables[i], int(self.starts[i][j])
            mask[k] = table["mask"][j]
            tokens[k, mask[k]] = table["tokens"][start : start + int(mask[k].sum())].float()
            also[k] = table["pooled"][j]
        return self.field.pack(tokens, mask, also if pooled else None)


def _groups(captions: set[str]) -> Iterator[list[str]]:
    """Captions by their hashes, which say where a group ends, whatever else there is."""
    group = []
    for digest, text in sorted((_digest(text), text) for text in captions):
        group.append(text)
        if int.from_bytes(digest[-4:], "big") % GROUP == 0:
            yield group
            group = []
    if group:
        yield group


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _table(
    group: list[str], field: Tokens, encode: Encode, dtype: torch.dtype
) -> dict[str, Tensor]:
    """A group's masks (n, length), pooled vectors (n, pooled), and all its tokens (s, width)."""
    texts, masks, tokens, pooled = iter(group), [], [], []
    while batch := list(islice(texts, BATCH)):
        found = field.unpack(field.pack(*encode(batch)))
        masks.append(found.mask)
        tokens.append(found.tokens[found.mask].to(dtype))
        pooled.append(found.pooled.to(dtype))
    parts = {"mask": masks, "tokens": tokens, "pooled": pooled}
    return {name: torch.cat(part).cpu() for name, part in parts.items()}


def _read(path: Path, field: Tokens, group: list[str]) -> dict[str, Tensor] | None:
    """A group's tensors from the cache, or None where they are absent, or are damaged."""
    table = kept(path)
    if table is None:
        return None
    found, facts = table
    shapes = {
        "mask": (len(group), field.length),
        "tokens": (int(found["mask"].sum()) if "mask" in found else 0, field.width),
        "pooled": (len(group), field.pooled),
    }
    fits = all(key in found and tuple(found[key].shape) == shape for key, shape in shapes.items())
    if fits and facts.get("of") == path.stem:
        return found
    log.warning("%s is damaged: its captions are encoded again", path)
    return None
