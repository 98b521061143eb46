"""How plugins of any kind are found: by an entry point, or by the import path of one that is none.

A `kind` is what a plugin is called in a sentence, `modality` or `objective`; its entry points are
of the group `scm_core.<plural>`.
"""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from scm_core.base.errors import UserError

PLURALS = {"modality": "modalities", "objective": "objectives"}


def group(kind: str) -> str:
    """The entry-point group of a kind of plugins."""
    return f"scm_core.{PLURALS[kind]}"


def installed(kind: str) -> list[EntryPoint]:
    """The entry points of all installed plugins of a kind, by name; nothing is imported."""
    found = {(entry.name, entry.value): entry for entry in entry_points(group=group(kind))}
    return [found[key] for key in sorted(found)]


def find(kind: str, name: str, others: tuple[str, ...] = ()) -> EntryPoint:
    """The plugin of that name, or at the import path `package.module:ATTRIBUTE`.

    UserError for a name that nobody provides or two provide; it suggests one of the installed or of
    `others`, which are right where the name stands.
    """
    if ":" in name:
        return EntryPoint(name=name, value=name, group=group(kind))
    entries = installed(kind)
    found = {entry.value: entry for entry in entries if entry.name == name}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        paths = " and ".join(sorted(found))
        raise UserError(f"two {PLURALS[kind]} are called {name}, {paths}: give one of these paths")
    names = sorted({entry.name for entry in entries})
    close = difflib.get_close_matches(name, [*names, *others], n=1)
    known = f"installed are: {', '.join(names)}" if names else "none is installed: install scm-core"
    hint = f"did you mean {close[0]}?" if close else known
    raise UserError(f"no {kind} is called {name}; {hint}")


def load(kind: str, entry: EntryPoint) -> Any:
    """What an entry point names; UserError where it lacks a package or does not import."""
    module, _, attribute = entry.value.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # an import may fail in any way; the message says how
        lacking = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and lacking != module.partition(".")[0]:
            reason = f"needs the package {lacking}: pip install {_provider(entry, lacking)}"
            raise UserError(f"{kind} {entry.name} {reason}") from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{kind} {entry.name} ({entry.value}) is broken: {reason}") from error


def _provider(entry: EntryPoint, package: str) -> str:
    """What to install for a package that a plugin lacks: the plugin's extra of its own name."""
    extras = (entry.dist.metadata.get_all("Provides-Extra") or []) if entry.dist else []
    return f"'{entry.dist.name}[{entry.name}]'" if entry.name in extras else package
