"""The embedding of a condition, whatever its fields: each of them brings its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class ConditionEmbedding(nn.Module):
    """The sum of one learned embedding per field of the schema, (B, width).

    A field is anything with `embed(width)`, a module from its values (B, ...) to (B, width), and
    `null(n, device)`, n values for 'not given'.
    """

    def __init__(self, schema: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.schema = schema
        self.fields = nn.ModuleDict({key: field.embed(width) for key, field in schema.items()})

    def forward(self, condition: Mapping[str, Tensor] | None, like: Tensor) -> Tensor | float:
        """`like` is any (B, ...) tensor, for the batch size when `condition` is None (all null)."""
        if condition is None:
            n, device = like.shape[0], like.device
            condition = {key: field.null(n, device) for key, field in self.schema.items()}
        return sum((embed(condition[key]) for key, embed in self.fields.items()), 0.0)
