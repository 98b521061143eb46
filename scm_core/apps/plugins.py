"""What is installed."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.table import Table

from scm_core.base import console
from scm_core.base.arguments import parse
from scm_core.base.errors import UserError
from scm_core.contract import spec as modalities
from scm_core.contract.config import Config
from scm_core.contract.spec import ModalitySpec
from scm_core.engine import config


@dataclass(frozen=True)
class Plugin:
    """An installed plugin: whose it is, and `ok` or the one-line reason why it cannot be used.

    `api_version` is None where the plugin could not be loaded.
    """

    name: str
    package: str
    version: str
    api_version: int | None
    state: str


def main(arguments: list[str]) -> None:
    """Print the listing, or the description of the plugin that the first word names."""
    if arguments:
        describe(*arguments)
    else:
        console.console.print(
            _table([field.name for field in dataclasses.fields(Plugin)], listing())
        )


def listing() -> list[Plugin]:
    """Every installed plugin, by name; it imports each of them, and never raises."""
    plugins = []
    for entry in modalities.installed():
        package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
        try:
            api_version, state = modalities.get(entry.name).api_version, "ok"
        except UserError as error:
            api_version, state = None, str(error)
        plugins.append(Plugin(entry.name, package, version, api_version, state))
    return plugins


def describe(name: str, *overrides: str) -> None:
    """Print a plugin's keys, conditions and shapes; UserError where it cannot be loaded.

    Conditions and shapes are of its data, which are read for it: of the preset smoke, if there is
    one and the overrides name no other.
    """
    spec = modalities.get(name)
    defaults = config.defaults(spec)
    console.console.print(f"modality {name}: {inspect.getfile(spec.config)}")
    console.console.print()
    own = {field.name for field in dataclasses.fields(spec.config)}
    own -= {field.name for field in dataclasses.fields(Config)}
    comments = yaml_comments(spec.config_file)
    for title, wanted in (("Its own keys", own), ("Keys that all plugins share", None)):
        rows = [
            row
            for row in keys(spec.config, defaults, comments)
            if (row[0].partition(".")[0] in own) == (wanted is own)
        ]
        console.console.print(f"{title}:")
        console.console.print(_table(["key", "type", "default", "meaning"], rows))
    settings = config.finish(
        spec, parse([f"modality={name}", *_smoke(spec, overrides), *overrides])
    )
    for line in shapes(spec, settings):
        console.console.print(line)


def keys(
    section: type, values: DictConfig, comments: dict[str, str], prefix: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    """`(key, type, default, documentation)` of a configuration dataclass, its sections first.

    A key's documentation is its comment in config.yaml, a section's the dataclass's docstring.
    """
    types = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        key, kind = f"{prefix}{field.name}", types[field.name]
        if dataclasses.is_dataclass(kind):
            yield f"{key}.*", "", "", " ".join((inspect.getdoc(kind) or "").split())
            yield from keys(kind, values[field.name], comments, f"{key}.")
        else:
            missing = OmegaConf.is_missing(values, field.name)
            default = "required" if missing else str(values[field.name])
            name = kind.__name__ if isinstance(kind, type) else str(kind)
            yield key, name.replace("typing.", ""), default, comments.get(key, "")


def yaml_comments(path: Path) -> dict[str, str]:
    """The comments behind keys of a YAML file in block style, by dotted key."""
    found, above = {}, []
    for line in path.read_text().splitlines():
        match = re.match(r"( *)([\w-]+):[^#]*(?:#\s*(.*))?$", line)
        if match:
            indent, key, comment = match.groups()
            above = [parent for parent in above if parent[0] < len(indent)] + [(len(indent), key)]
            if comment:
                found[".".join(name for _, name in above)] = comment.strip()
    return found


def shapes(spec: ModalitySpec, settings: Any) -> Iterator[str]:
    """Lines that say what a sample and its conditions are, or why the data cannot be had."""
    try:
        data = spec.data(settings)
        data.setup()
    except UserError as error:
        yield f"Shapes and conditions are those of the data, and there are none: {error}"
        return
    yield f"A sample x is float32 (B, {', '.join(map(str, data.shape))}), preset {settings.preset}."
    for key, field in data.condition.items():
        null = field.null(1)
        kind = f"{str(null.dtype).removeprefix('torch.')} {('B', *null.shape[1:])}"
        yield f"Condition {key}: {kind.replace(chr(39), '')}, {field}"
    if not data.condition:
        yield "It has no condition."


def _smoke(spec: ModalitySpec, overrides: tuple[str, ...]) -> list[str]:
    named = any(word.startswith("preset=") for word in overrides)
    return [] if named or not (spec.presets / "smoke.yaml").exists() else ["preset=smoke"]


def _table(columns: list[str], rows: Any) -> Table:
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        values = dataclasses.astuple(row) if dataclasses.is_dataclass(row) else row
        table.add_row(*("" if value is None else str(value) for value in values))
    return table
