"""What the command lines share: help, one-sentence errors, exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from rich.console import Console

from scm_core import parallel
from scm_core.errors import UserError

STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # of schedulers and closed terminals

console = Console(highlight=False, markup=False)  # what files are called is no markup


def run(main: Callable[[list[str]], None], usage: str) -> NoReturn:
    """Run `main` on the command line's words and exit: 0, 2 for a UserError, 130 if interrupted."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(usage.strip())
        sys.exit(0)
    quieten()
    parallel.limit_threads()
    try:
        with stoppable():
            main(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # of a terminal that is closed
            print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it any of `STOPS` ends the command as Ctrl-C does, its files whole or absent."""
    before = {number: signal.getsignal(number) for number in STOPS}

    def stop(_: int) -> None:
        for number in STOPS:  # of which another may follow
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    answer(STOPS, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def answer(signals: Iterable[int], act: Callable[[int], None]) -> None:
    """Have `act` answer signals to this process; SIGHUP stays ignored where it is (nohup).

    Forked processes leave them to this one, but for SIGTERM, by which it may end them.
    """
    first = os.getpid()

    def handler(number: int, _: Any) -> None:
        if os.getpid() == first:
            act(number)
        elif number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in signals:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


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
