"""A condition for networks, whatever its fields: each of them brings its own embedding.

A field is anything with `embed(width)`, a module from its values (B, ...) to (B, width),
`sequence(width)`, None or a module from them to tokens (B, L, width) and their mask, bool (B, L),
and `null(n, device)`, n values for 'not given'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Context = tuple[Tensor, Tensor]


class ConditionEmbedding(nn.Module):
    """The sum of one learned embedding per field of the schema, (B, width)."""

    def __init__(self, schema: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.schema = schema
        self.fields = nn.ModuleDict({key: field.embed(width) for key, field in schema.items()})

    def forward(self, condition: Mapping[str, Tensor] | None, like: Tensor) -> Tensor | float:
        """`like` is any (B, ...) tensor, for the batch size when `condition` is None (all null)."""
        given = _given(self.schema, condition, like)
        return sum((embed(given[key]) for key, embed in self.fields.items()), 0.0)


class ConditionTokens(nn.Module):
    """All sequences of a condition as one context for cross-attention, (B, 1 + L, width) and mask.

    A learned token stands in front and is never masked: what is attended to where nothing is given.
    """

    def __init__(self, schema: Mapping[str, Any], width: int) -> None:
        super().__init__()
        self.schema = schema
        found = {key: field.sequence(width) for key, field in schema.items()}
        self.fields = nn.ModuleDict({key: one for key, one in found.items() if one is not None})
        self.null = nn.Parameter(torch.randn(width)) if self.fields else None

    def forward(self, condition: Mapping[str, Tensor] | None, like: Tensor) -> Context | None:
        """As `ConditionEmbedding`; None for a schema without sequences."""
        if self.null is None:
            return None
        given = _given(self.schema, condition, like)
        tokens, masks = zip(*(one(given[key]) for key, one in self.fields.items()), strict=True)
        null = self.null.to(tokens[0].dtype).expand(masks[0].shape[0], 1, -1)
        always = masks[0].new_ones(masks[0].shape[0], 1)
        return torch.cat([null, *tokens], 1), torch.cat([always, *masks], 1)


def _given(
    schema: Mapping[str, Any], condition: Mapping[str, Tensor] | None, like: Tensor
) -> Mapping[str, Tensor]:
    """The condition, or the null one of each field."""
    if condition is not None:
        return condition
    return {key: field.null(like.shape[0], like.device) for key, field in schema.items()}
