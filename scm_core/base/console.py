"""What the command lines share: help, one-line errors, exit codes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NoReturn

import rich.console
from rich.segment import Segment
from rich.text import Text

from scm_core.base import distributed
from scm_core.base.errors import UserError, visible

STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # of schedulers and closed terminals


class Console(rich.console.Console):
    """The one way to print. Names and notes of files, which come from anywhere, are shown as they
    are: no markup, no control of the terminal, and a text that is printed is one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As Rich does with what is printed and with a table's cells, in one line."""
        return super().render_str(visible(text), **options)

    def render(self, *given: Any, **options: Any) -> Iterable[Segment]:
        """As Rich does with all else; only Rich itself steers the terminal."""
        for text, style, control in super().render(*given, **options):
            yield Segment(text if control else visible(text, keep="\n"), style, control)


class Formatter(logging.Formatter):
    """Messages of a log, which hold such names too."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(super().formatMessage(record))


console = Console()


def run(main: Callable[[list[str]], None], usage: str) -> NoReturn:
    """Run `main` on the command line's words and exit: 0, 2 for a UserError, 130 if interrupted."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words):
        print(usage.strip())
        sys.exit(0)
    quieten()
    distributed.limit_threads()
    try:
        with stoppable():
            main(words)
    except UserError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        distributed.leave(2)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # of a terminal that is closed
            print("interrupted; run the same command again to resume", file=sys.stderr)
        distributed.leave(130)
    distributed.leave(0)


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
    with distributed.joined():
        first = distributed.world()[1] == 0
        console.quiet = not first
        yield first


def quieten() -> None:
    """Silence what libraries say about themselves and a user cannot act on, and tame the rest."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    if isinstance(sys.stdout, io.TextIOWrapper):  # of a terminal that knows few characters
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.lastResort.setFormatter(Formatter())  # which prints what no library has a handler for
    sys.excepthook = _uncaught


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    lines = "".join(traceback.format_exception(kind, error, trace))
    sys.stderr.write(visible(lines, keep="\n"))
