"""The server as a whole: it listens until it is stopped, and ends as one.

Its processes need each other: the one that answers HTTP, one for each device that draws, and one
that keeps the queues between them. A server that lacks one would accept what it never answers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing import connection, util
from typing import Any

import litserve
from litserve.utils import WorkerSetupStatus
from omegaconf import DictConfig

from scm_core.apps.serving import http
from scm_core.apps.serving.gate import Gate, Places
from scm_core.apps.serving.sampler import Sampler
from scm_core.apps.web.connection import Connection
from scm_core.apps.web.guard import Guard
from scm_core.base import distributed
from scm_core.base.errors import UserError

STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE = 10  # seconds in which requests are still answered when the server stops


class Server(litserve.LitServer):
    """LitServe's server, which ends as a whole when one of its processes does."""

    def verify_worker_status(self) -> None:
        """Wait until a model can be asked; UserError where a process ends before."""
        self.started = {*multiprocessing.active_children(), *self.inference_workers}
        while True:
            with contextlib.suppress(EOFError, OSError):  # of queues whose process has ended
                if WorkerSetupStatus.READY in self.workers_setup_status.values():
                    return
            self.watch(timeout=0.05)

    def _start_worker_monitoring(self, _: Any, api_servers: dict[int, Any]) -> None:
        # LitServe would wait here for an event, and have a thread look at the workers alone.
        self.started.update(api_servers.values())
        self.watch()

    def watch(self, timeout: float | None = None) -> None:
        """Wait for a process to end, which ends all of them and is a UserError."""
        processes = {process.sentinel: process for process in self.started}
        for ended in connection.wait(processes, timeout):
            for process in self.started:
                process.kill()
                process.join()
            code = processes[ended].exitcode
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise UserError(
                f"a process of the server has ended, {processes[ended].name} ({how}), and with it"
                " the server: start it again; SIGKILL may mean that memory ran out, which a lower"
                " max_batch_size= or max_n= saves"
            )


def serve(served: dict[str, http.Served], decoder: dict[str, Any], settings: DictConfig) -> None:
    """Serve until Ctrl-C or SIGTERM; UserError where a process of the server has ended."""
    places = Places(settings.queue)
    guard = {"host": settings.host, "allowed_hosts": settings.allowed_hosts}
    server = Server(
        Sampler(served, decoder, settings, places),
        timeout=False,
        middlewares=[(Gate, {"places": places}), (Guard, guard)],  # the last is asked first
    )
    http.complete(server.app, served)
    server.uvicorn_graceful_timeout = GRACE
    util.register_after_fork(server, lambda _: distributed.end_with_parent())
    stop_at_signals()
    try:
        server.run(
            settings.host,
            settings.port,
            num_api_servers=1,  # which counts the requests that wait
            log_level="error",
            generate_client_file=False,
            http=Connection,
        )
    except KeyboardInterrupt:  # LitServe handles it, but not while it starts
        for process in multiprocessing.active_children():
            process.terminate()


def stop_at_signals() -> None:
    """Make SIGTERM the same as Ctrl-C, and either of them final.

    Both may be sent to all processes, of which this one stops the others: forked ones ignore them.
    """
    first = os.getpid()

    def stop(*_: Any) -> None:
        if os.getpid() == first:
            for sent in STOPS:
                signal.signal(sent, signal.SIG_IGN)
            raise KeyboardInterrupt

    for sent in STOPS:
        signal.signal(sent, stop)
