"""Start a plugin."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path

from scm_core.base import console
from scm_core.base.errors import UserError
from scm_core.base.files import write_text
from scm_core.contract import spec

TEMPLATE = Path(__file__).with_name("template")
TOKEN = "newname"
NAME = "[a-z]([a-z0-9_]*[a-z0-9])?"  # of a package, for Python and for pip
ENDINGS = (".py", ".toml", ".yaml", ".md")


def main(arguments: list[str]) -> None:
    """Write the package and say what to do next."""
    if len(arguments) != 1:
        raise UserError("give one word, the new modality's name: new_modality spectra")
    folder = write(arguments[0], Path())
    console.console.print(f"{folder} is written; now:")
    console.console.print(f"  pip install -e {folder}")
    for command in ("check", "train", "sample"):
        overrides = " max_steps=20" if command == "train" else ""
        console.console.print(f"  python -m scm_core.{command} modality={folder}{overrides}")


def write(name: str, parent: Path) -> Path:
    """Write the package `name` into `parent` and return its folder.

    Raises UserError for a name that is no Python identifier or already in use.
    """
    if not re.fullmatch(NAME, name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} cannot be a package's name: give lower-case letters, digits, _")
    if name in {entry.name for entry in spec.installed()}:
        raise UserError(f"a modality called {name} is installed already: choose another name")
    folder = parent / name
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another name, or remove it")
    if importlib.util.find_spec(name):
        raise UserError(f"a package called {name} is installed already: choose another name")
    for source in sorted(path for path in TEMPLATE.rglob("*") if path.suffix in ENDINGS):
        target = folder / str(source.relative_to(TEMPLATE)).replace(TOKEN, name)
        write_text(target, source.read_text().replace(TOKEN, name))
    return folder
