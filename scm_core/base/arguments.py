"""A command line's overrides, `key=value`: what is written, and what the key's type makes of it.

A shell's word is a text, and YAML would make numbers of dates and nothing of what follows a #.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scm_core.base.errors import UserError, first_line, halved

Overrides = dict[str, str]  # by their dotted keys
UNSET = (None, "", "null")  # what takes a value back
NONE, UNIONS = type(None), (typing.Union, types.UnionType)


def place(default: str | None = None) -> Any:
    """A key that names a file, a folder or an address.

    `~` is the home in it, and a model's file does not choose it (see `scm_core.engine.foreign`).
    """
    return dataclasses.field(default=default, metadata={"place": True})


def prose() -> Any:
    """A key of any text, by default none, which names no place though it may look like one."""
    return dataclasses.field(default=None, metadata={"place": False})


def parse(arguments: list[str]) -> Overrides:
    """`key=value` arguments as they are written; the key's type says in `merge` what a value is."""
    for word in arguments:
        if "=" not in word:
            raise UserError(f"{word!r} is not key=value; --help lists the keys")
        if "???" in word:  # which OmegaConf takes for a value that is still to come
            raise UserError(f"{word!r} gives no value")
        if halved(word):
            raise UserError(
                f"{word!r} has bytes that are no UTF-8, which a configuration cannot hold: rename "
                "the file or folder, or name a link to it"
            )
    return dict(word.split("=", 1) for word in arguments)


def word(overrides: Overrides, key: str) -> str | None:
    """The value of a word that decides what the others mean, if it is given."""
    try:
        text = OmegaConf.create({key: overrides.get(key)})[key]
    except OmegaConfBaseException as error:
        raise UserError(f"command line: {key}: {first_line(error)}") from error
    return None if text in UNSET else os.path.expanduser(text)


def section(overrides: Overrides, name: str) -> Overrides:
    """A section's overrides, taken out of the command's."""
    found = [key for key in overrides if re.split(r"[.\[]", key)[0] == name]
    return {key: overrides.pop(key) for key in found}


def marked(kind: type, place: bool, prefix: str = "") -> list[str]:
    """The dotted keys of a configuration dataclass that are a `place`, or else `prose`."""
    found = []
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for one in dataclasses.fields(kind):
            key = f"{prefix}{one.name}"
            if one.metadata.get("place") is place:
                found.append(key)
            found += marked(hints[one.name], place, f"{key}.")
    return found


def typed(overrides: Overrides, schema: type) -> DictConfig:
    """Overrides as values: lists, sections and what has no type in the dataclass `schema` as YAML,
    all else as it is written.

    What a number is, and whether a text is one, OmegaConf says when it is merged.
    """
    found = OmegaConf.create()
    for key, text in overrides.items():
        if whole := _list_above(schema, key):
            raise UserError(f"{key}: {whole} is given as a whole, as {whole}=[...]")
        kinds = _kinds(schema, key)
        if not any(map(_is_yaml, kinds)):
            OmegaConf.update(found, key, None if NONE in kinds and text in UNSET else text)
            continue
        try:
            if all(map(_is_plain_list, kinds)):
                OmegaConf.update(found, key, yaml.BaseLoader(text).get_data())
            else:
                found.merge_with_dotlist([f"{key}={text}"])
        except OmegaConfBaseException:
            raise
        except Exception as error:  # the YAML parser's own errors for a malformed value
            raise UserError(f"cannot read {key}={text}: {first_line(error)}") from error
    return found


def several(given: Any) -> list[str]:
    """What may be one text or a list of them, as a list; none of None."""
    given = given if isinstance(given, (list, ListConfig)) else [] if given is None else [given]
    return [str(one) for one in given]


def nearest(key: str, known: list[str]) -> str:
    """A hint: the known key closest to a misspelt one, or the choices at its level."""
    by_leaf = {name.rsplit(".", 1)[-1]: name for name in reversed(known)}
    for candidates in (known, list(by_leaf)):
        wanted = key if candidates is known else key.rsplit(".", 1)[-1]
        close = difflib.get_close_matches(wanted, candidates, n=1, cutoff=0.7)
        if close:
            return f"did you mean {by_leaf.get(close[0], close[0])}?"
    parent = key.rpartition(".")[0]
    level = [k for k in known if k.rpartition(".")[0] == parent]
    return f"known are: {', '.join(level or known)}"


def _kinds(kind: Any, key: str) -> tuple[Any, ...]:
    """The types that a dotted key of a configuration dataclass may have."""
    for name in key.split("."):
        known = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        kind = known.get(name, Any)
    return typing.get_args(kind) if typing.get_origin(kind) in UNIONS else (kind,)


def _list_above(schema: type, key: str) -> str | None:
    """The list that a dotted key lies in, of which OmegaConf merges no single element."""
    parts = re.split(r"[.\[]", key)
    above = (".".join(parts[:n]) for n in range(1, len(parts)))
    lists = (n for n in above if all(typing.get_origin(k) is list for k in _kinds(schema, n)))
    return next(lists, None)


def _is_yaml(kind: Any) -> bool:
    containers = (list, dict, tuple)
    named = kind in (Any, *containers) or typing.get_origin(kind) in containers
    return named or dataclasses.is_dataclass(kind)


def _is_plain_list(kind: Any) -> bool:
    return typing.get_origin(kind) is list and not any(map(_is_yaml, typing.get_args(kind)))
