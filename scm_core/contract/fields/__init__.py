"""What a sample is conditioned on: fields, and the schema that names them."""

from scm_core.contract.fields.field import Control, Field
from scm_core.contract.fields.label import Label
from scm_core.contract.fields.schema import (
    Condition,
    Schema,
    drop_condition,
    null_condition,
    parse_condition,
    schema_from_dict,
    schema_to_dict,
    shown,
    with_examples,
)
from scm_core.contract.fields.tokens import Tokens
from scm_core.contract.fields.vector import Vector

__all__ = [
    "Condition",
    "Control",
    "Field",
    "Label",
    "Schema",
    "Tokens",
    "Vector",
    "drop_condition",
    "null_condition",
    "parse_condition",
    "schema_from_dict",
    "schema_to_dict",
    "shown",
    "with_examples",
]
