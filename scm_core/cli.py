"""What the command lines share: help, one-sentence errors, exit codes."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

from rich.console import Console

from scm_core import parallel
from scm_core.errors import UserError

console = Console(highlight=False, markup=False)  # what files are called is no markup


def run(main: Callable[[list[str]], None], usage: str) -> NoReturn:
    """Run `main` on the command line's words and exit: 0, 2 for a UserError, 130 for Ctrl-C."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(usage.strip())
        sys.exit(0)
    quieten()
    try:
        main(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


@contextlib.contextmanager
def together() -> Iterator[bool]:
    """Work with the processes that torchrun started, if it did; is this the one that speaks?"""
    with parallel.joined():
        first = parallel.world()[1] == 0
        console.quiet = not first
        yield first


def quieten() -> None:
    """Silence what libraries say about themselves and a user cannot act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
