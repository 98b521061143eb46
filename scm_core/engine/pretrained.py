"""A teacher that somebody else has trained: what a run does about it before its student starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.base import console
from scm_core.base.errors import UserError, first_line
from scm_core.contract.fields import Condition, Label, Schema, null_condition
from scm_core.contract.spec import DataModule
from scm_core.engine import storage
from scm_core.networks.pretrained import Adapter, time
from scm_core.networks.pretrained.adapter import classes


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


def tell_classes(name: str, backbone: Adapter, schema: Schema) -> None:
    """Say which of a pretrained network's classes stands for which of the data's: numbers alone
    tell, and a network knows no names."""
    label = schema.get("label")
    if backbone.family.label and classes(backbone.network) and isinstance(label, Label):
        pairs = [f"{i} for {label.show(i)}" for i in range(label.classes)]
        listed = pairs if len(pairs) <= 6 else [*pairs[:3], "...", *pairs[-2:]]
        console.console.print(f"pretrained={name}: its class {', '.join(listed)}", soft_wrap=True)


def check_source(path: Path, name: str, source: str) -> None:
    """UserError where the teacher at `path`, of a run that goes on, was read from other weights."""
    if storage.read(path)[0].get("source") != source:
        raise UserError(
            f"{path.parent} holds a run whose teacher was another one than pretrained={name} is "
            "now: name that one, or choose another out="
        )


def slow_time(backbone: Adapter, data: DataModule, begins: bool) -> None:
    """Make a student's embedding of time slow enough; of one that `begins`, fit it and say so."""
    given = backbone, *_any(data.shape, data.condition)
    for found in time.slow(*given) if begins else ():
        console.console.print(str(found))
    time.hold(*given)


def slow_time_while(
    on: list[str], backbone: Adapter, data: DataModule, begins: bool
) -> dict[str, time.Slowed]:
    """That of a LoRA student, while one of its adapters is `on`; see `time.slow_while`."""
    slowed = time.slow_while(on, backbone, *_any(data.shape, data.condition))
    for found in slowed.values() if begins else ():
        console.console.print(str(found))
    return slowed


def slow_as_trained(backbone: nn.Module, described: Mapping[str, Any], schema: Schema) -> None:
    """Make the embedding of time as slow as it was in training, where a checkpoint says so."""
    adapter = described.get("lora")
    if adapter is not None and adapter.get("slow"):
        time.slow(backbone, *_any(described["shape"], schema))


def _any(shape: Sequence[int], schema: Schema) -> tuple[Tensor, Condition]:
    """A sample and a condition."""
    return torch.zeros(1, *shape), null_condition(schema, 1)
