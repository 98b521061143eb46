"""A teacher that somebody else has trained: what a run does about it before its student starts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from scm_core.base import console
from scm_core.base.errors import UserError, first_line
from scm_core.contract.fields import Schema, null_condition
from scm_core.engine import storage
from scm_core.networks.pretrained import Adapter, time


def check_samples(name: str, backbone: nn.Module, shape: tuple[int, ...], schema: Schema) -> None:
    """UserError where a pretrained backbone does not take samples of that shape (C, *grid)."""
    try:
        with torch.no_grad():
            out = backbone(torch.zeros(1, *shape), torch.ones(1), null_condition(schema, 1))
        why = "" if out.shape[1:] == shape else f"it makes {tuple(out.shape[1:])} of them"
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        why = first_line(error)
    if why:
        sizes = " x ".join(map(str, shape))
        raise UserError(f"pretrained={name} cannot take samples of {sizes}: {why}")


def check_source(path: Path, name: str, source: str) -> None:
    """UserError where the teacher at `path`, of a run that goes on, was read from other weights."""
    if storage.read(path)[0].get("source") != source:
        raise UserError(
            f"{path.parent} holds a run whose teacher was another one than pretrained={name} is "
            "now: name that one, or choose another out="
        )


def slow_time(backbone: Adapter, shape: tuple[int, ...], schema: Schema, *, begins: bool) -> None:
    """Make a student's embedding of time slow enough; of one that `begins`, fit it and say so."""
    x, condition = torch.zeros(1, *shape), null_condition(schema, 1)
    for found in time.slow(backbone, x, condition, fit=begins):
        if begins:
            console.console.print(str(found))
