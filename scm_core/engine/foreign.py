"""What a model's file may ask for: no place outside of it, and no more than its weights hold.

A file from anywhere states a configuration, and whoever wrote it may have written anything.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from scm_core.base.arguments import marked
from scm_core.base.errors import UserError

OF_THE_CORE = {"teacher", "student", "trainer", "seed"}  # of a training: no model is built by them
NUMBER, CLASSES = 1 << 20, 1 << 10  # what a number may be, and a condition, beside few weights
SAMPLE = 64  # numbers of a sample for each weight, beside NUMBER
COPIES, SPARE = 4, 1 << 29  # float32 of each weight while it is built, and bytes for all else
TENSORS = 64, 4_000  # that are made while it is built, for each weight and beside
# On "meta" there is nothing to fill, and torch would import its compiler to do so.
FILLS = (torch.ops.aten.normal_, torch.ops.aten.uniform_)

Places = dict[str, Any]  # by their dotted keys


def without_places(stated: dict[str, Any], base: DictConfig) -> tuple[dict, Places]:
    """A file's configuration without what names a file, a folder or an address, and those.

    That is what `base` declares by `base.arguments.place`, and any text with a path's characters
    in a key that it does not declare to be `prose`; what is the default in `base` is no choice of
    the file.
    """
    schema = OmegaConf.get_type(base)
    declared, prose = marked(schema, True), marked(schema, False)
    kept, found = {}, {}
    for keys, value in _leaves(stated):
        name = ".".join(keys)
        suspect = name in declared or (name not in prose and _like_a_path(value))
        if suspect and value and value != OmegaConf.select(base, name):
            found[name] = value
        elif not suspect or value:
            section = kept
            for key in keys[:-1]:
                section = section.setdefault(key, {})
            section[keys[-1]] = value
    return kept, found


def refuse(source: Any, named: Places, given: Collection[str]) -> None:
    """UserError for the first of a file's places that no word of the command line replaces."""
    for key in [key for key in named if key not in given]:
        raise UserError(
            f"{source} names {str(named[key])[:100]!r} as its {key}; no file chooses what is opened"
            f" or asked: name by {key}= what you know and trust, or give null for the default"
        )


def bound(described: dict[str, Any], stated: Mapping[str, Any], weights: dict[str, Tensor]) -> None:
    """ValueError where a file states larger numbers than its weights can account for."""
    known = sum(value.numel() for value in weights.values())
    building = {k: v for k, v in stated.items() if k not in OF_THE_CORE | {"data"}}
    _most(building, max(NUMBER, known), "number")
    _most(described["condition"], max(CLASSES, known), "condition")
    latents = described["statistics"].get("latents", {})
    for shape in (described["shape"], latents.get("of", [])):
        if not all(type(size) is int for size in shape):
            raise ValueError(f"the shape {shape} is not of whole numbers")
        if math.prod(shape) > NUMBER + SAMPLE * known:
            raise ValueError(f"a sample of {shape} is too large for {known} weights")


def _most(stated: Any, most: int, what: str) -> None:
    for _, value in _leaves({"": stated}):
        for number in tree_leaves(value):
            if isinstance(number, int) and abs(number) > most:
                raise ValueError(f"the {what} {number} is too large for its weights")


class Bounded(TorchDispatchMode):
    """Inside, nothing is made that is larger than a model of these weights can be.

    How large something would be is asked before it is made, on "meta", where it takes no memory.
    UserError names the `source`.
    """

    def __init__(self, weights: dict[str, Tensor], source: Any) -> None:
        super().__init__()
        self.bytes = SPARE + COPIES * 4 * sum(value.numel() for value in weights.values())
        self.tensors = TENSORS[0] * len(weights) + TENSORS[1]
        self.source = source

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here, and torch would import its compiler to be told so."""
        return False

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in FILLS and args[0].is_meta:
            return args[0]
        if not any(result.alias_info for result in func._schema.returns):
            self._take(_asked(func, args, kwargs))
        return func(*args, **kwargs)

    def _take(self, made: list[Tensor]) -> None:
        self.tensors -= len(made)
        self.bytes -= sum(value.numel() * value.element_size() for value in made)
        if self.tensors < 0 or self.bytes < 0:
            raise UserError(f"{self.source} describes a larger model than its weights are of")


def _asked(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """What an operation would make, without memory; nothing where that depends on values."""
    args, kwargs = tree_map_only(Tensor, lambda value: value.to("meta"), (args, kwargs))
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs["device"] = torch.device("meta")
    try:
        return [made for made in tree_leaves(func(*args, **kwargs)) if isinstance(made, Tensor)]
    except (NotImplementedError, RuntimeError):  # the operation itself says what is wrong
        return []


def _like_a_path(value: Any) -> bool:
    texts = (text for text in tree_leaves(value) if isinstance(text, str))
    return any(set(text) & set("/\\") or text.startswith(("~", ".")) for text in texts)


def _leaves(stated: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple]:
    for key, value in stated.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value
