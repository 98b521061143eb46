"""What libraries download: one process at a time, and what fails is one line of advice."""

from __future__ import annotations

import contextlib
import socket
import sys
import tarfile
from collections.abc import Iterator

from scm_core.base.errors import UserError, first_line
from scm_core.base.files import in_turn
from scm_core.data.cache import CACHE
from scm_core.data.limits import unpacking


@contextlib.contextmanager
def downloading(name: str, advice: str) -> Iterator[None]:
    """Let a library download without hanging; turn its failure into one line of advice."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        # Processes of one run begin at once, and would write over each other.
        with in_turn(CACHE), contextlib.redirect_stdout(sys.stderr), unpacking():
            yield
    except (OSError, RuntimeError, tarfile.TarError) as error:
        reason = first_line(error).rstrip(".:")
        raise UserError(f"{name} could not be downloaded ({reason}); {advice}") from error
    finally:
        socket.setdefaulttimeout(patience)
