"""One command for all: `scm train modality=image` is `python -m scm_core.train modality=image`."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from pathlib import Path

from scm_core.base.errors import visible


def main() -> None:
    """Run the command that the first argument names; without one, list them all."""
    known = commands()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("scm COMMAND key=value ...    (scm COMMAND --help lists its keys)\n")
        for command, about in known.items():
            print(f"  {command:14}{about}")
    elif name not in known:
        from scm_core.base.arguments import nearest  # slow to import, for a mistake alone

        hint = nearest(name, list(known))
        print(f"error: no command {visible(name)}; {hint}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv[1:] = arguments
        if not sys.flags.safe_path:  # as python -m: plugins may lie in the working directory
            sys.path.insert(0, os.getcwd())
        runpy.run_module(f"scm_core.{name}", run_name="__main__", alter_sys=True)


def commands() -> dict[str, str]:
    """What each module beside this one does, by its name: its docstring's beginning."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        found[path.stem] = ast.get_docstring(ast.parse(path.read_text())).partition(":")[0]
    return found


if __name__ == "__main__":
    main()
