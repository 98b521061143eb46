"""Serve models over HTTP."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from scm_core.apps.opening import open_checkpoint, settings_of
from scm_core.base import console
from scm_core.base.arguments import place, several
from scm_core.base.errors import UserError

HOSTS = ("127.0.0.1", "0.0.0.0", "::")  # all that LitServe listens on
NEEDS = "the server needs LitServe: pip install 'scm-core[serve]'"


@dataclass
class ServeConfig:
    """What to serve, where, and how much of it at a time."""

    checkpoint: str | None = place()
    modality: Any = None
    host: str = HOSTS[0]
    port: int = 8000
    allowed_hosts: Any = None
    max_batch_size: int = 16
    batch_timeout: float = 0.01
    queue: int = 64
    max_n: int = 16


def main(arguments: list[str]) -> None:
    """Open what the overrides name, and serve it until Ctrl-C or SIGTERM."""
    settings, decoder = settings_of(ServeConfig, arguments)
    check(settings)
    try:
        from scm_core.apps.serving import processes, sampler
        from scm_core.apps.web import guard
    except ModuleNotFoundError as error:
        raise UserError(f"{NEEDS} ({error.name} is missing)") from None
    names = several(settings.modality) or [None]
    if settings.checkpoint and len(names) > 1:
        raise UserError(
            "checkpoint= is one model; leave modality= out, or give several by it alone"
        )
    # On the CPU: the process that answers is forked from this one, which CUDA does not survive.
    models = [open_checkpoint(settings.checkpoint, name, decoder, "cpu") for name in names]
    served = {model.spec.name: sampler.describe(model) for model in models}
    address = f"http://{guard.bracketed(settings.host)}:{settings.port}"
    console.console.print(
        f"serving {', '.join(served)} at {address}/sample, described at {address}/docs",
        soft_wrap=True,
    )
    if said := guard.reach(settings.host, settings.allowed_hosts):
        console.console.print(said, soft_wrap=True)
    processes.serve(served, decoder, settings)
    console.console.print("stopped")


def check(settings: ServeConfig) -> None:
    """UserError for numbers out of range and an address that cannot be listened on."""
    for key in ("max_batch_size", "queue", "max_n"):
        if settings[key] < 1:
            raise UserError(f"{key}={settings[key]} must be at least 1")
    if not 0 <= settings.batch_timeout <= 60:
        raise UserError(f"batch_timeout={settings.batch_timeout} must be from 0 to 60 seconds")
    if settings.host not in HOSTS or not 1024 <= settings.port <= 65535:
        raise UserError(f"host= is one of {', '.join(HOSTS)}, and port= from 1024 to 65535")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        raise UserError(f"cannot listen on port {settings.port}: {error.strerror}") from error
