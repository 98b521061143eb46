"""A schema, the fields of a condition by name, and conditions that follow it.

A condition is a dict of tensors (B, ...), one for each field of the schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from scm_core.base.distributed import shared
from scm_core.base.errors import UserError
from scm_core.contract.fields.field import Field
from scm_core.contract.fields.label import Label
from scm_core.contract.fields.tokens import Tokens
from scm_core.contract.fields.vector import Vector

Condition = dict[str, Tensor]
Schema = dict[str, Field]
KINDS = (Label, Vector, Tokens)


def schema_to_dict(schema: Schema) -> dict[str, dict[str, Any]]:
    """The schema in plain containers, for a checkpoint's metadata."""
    return {key: field.schema() for key, field in schema.items()}


def schema_from_dict(plain: dict[str, Any], kinds: Iterable[type[Field]] = ()) -> Schema:
    """The inverse of `schema_to_dict`; `kinds` are those that a plugin brings (`spec.fields`).

    UserError for a kind that nobody has.
    """
    known = {kind.kind(): kind for kind in (*KINDS, *kinds)}
    for key, entry in plain.items():
        if entry["kind"] not in known:
            raise UserError(
                f"condition {key} is of the kind {entry['kind']}, which is none of "
                f"{', '.join(known)}: a plugin lists its own in ModalitySpec(fields=...)"
            )
    return {key: known[entry["kind"]].from_schema(entry) for key, entry in plain.items()}


def with_examples(schema: Schema, condition: Condition) -> Schema:
    """The schema with a few real conditions, which go in turn where none is asked for.

    Example i of every field is of one sample: what does not occur together is not made up.
    """
    return {key: field.with_examples(condition[key]) for key, field in schema.items()}


def parse_condition(schema: Schema, asked: Mapping[str, Any], n: int) -> Condition:
    """`n` conditions by what is `asked`, texts of a command line or what JSON gives; lists cycle.

    What is not given goes in turn. UserError for what a field does not know.
    """
    condition = {}
    for key, field in schema.items():
        if key not in asked:
            condition[key] = field.cycle(n)
            continue
        values = torch.stack([torch.as_tensor(one) for one in field.parse_json(asked[key])])
        field.validate(values)
        if len(values) == 1:  # which takes no memory, however often
            condition[key] = values.expand(n, *values.shape[1:])
        else:
            condition[key] = values[torch.arange(n) % len(values)]
    return condition


def shown(schema: Schema, condition: Condition, i: int) -> dict[str, Any]:
    """Condition number `i` as people write it, in plain containers."""
    return {key: field.show(condition[key][i]) for key, field in schema.items()}


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
