"""Serve models over HTTP: `python -m scm_core.serve modality=[image,audio]`; Ctrl-C stops it.

Keys (key=value):
  modality=NAME         the shipped student, or where none is shipped the one trained last in runs/;
                        several as [image,audio,video]
  checkpoint=FILE       instead: an exported teacher or student, a folder of python -m scm_core.hub,
                        or hub:OWNER/NAME
  host=127.0.0.1        0.0.0.0 or :: to be reached from other machines
  port=8000             1024 to 65535
  allowed_hosts=NAME    the server's name, or a list, where it is asked by one: behind a proxy, say
  max_batch_size=16     requests that are drawn together at most
  batch_timeout=0.01    seconds that a request waits for others to be drawn with
  queue=64              requests that wait or are being drawn; more are answered 429
  max_n=16              samples of one request
  decoder.vocoder= ...  the decoder's own keys, where they differ from those of the training
To draw: curl --json '{"modality": "image", "seed": 3}' -o 3.png 127.0.0.1:8000/sample
Requests, answers and limits are described at /docs and in docs/server.md.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from omegaconf import ListConfig, OmegaConf

from scm_core import cli, config
from scm_core.errors import UserError
from scm_core.sample import open_checkpoint

HOSTS = ("127.0.0.1", "0.0.0.0", "::")  # all that LitServe listens on
NEEDS = "the server needs LitServe: pip install 'scm-core[serve]'"


@dataclass
class ServeConfig:
    """What to serve, where, and how much of it at a time."""

    checkpoint: str | None = config.place()
    modality: Any = None
    host: str = HOSTS[0]
    port: int = 8000
    allowed_hosts: Any = None
    max_batch_size: int = 16
    batch_timeout: float = 0.01
    queue: int = 64
    max_n: int = 16


def main(arguments: list[str]) -> None:
    """Open what the words name, and serve it until Ctrl-C or SIGTERM."""
    words = config.parse(arguments)
    decoder = config.section(words, "decoder")
    settings = config.merge(OmegaConf.structured(ServeConfig), ("command line", words))
    check(settings)
    try:
        from scm_core import guard
        from scm_core.serving import processes, sampler
    except ModuleNotFoundError as error:
        raise UserError(f"{NEEDS} ({error.name} is missing)") from None
    names = settings.modality if isinstance(settings.modality, ListConfig) else [settings.modality]
    if settings.checkpoint and len(names) > 1:
        raise UserError(
            "checkpoint= is one model; leave modality= out, or give several by it alone"
        )
    # On the CPU: the process that answers is forked from this one, which CUDA does not survive.
    models = [open_checkpoint(settings.checkpoint, name, decoder, "cpu") for name in names]
    served = {model.spec.name: sampler.describe(model) for model in models}
    address = f"http://{settings.host}:{settings.port}"
    cli.console.print(
        f"serving {', '.join(served)} at {address}/sample, described at {address}/docs"
        f"{guard.reach(settings.host, settings.allowed_hosts)}",
        soft_wrap=True,
    )
    processes.run(served, decoder, settings)
    cli.console.print("stopped")


def check(settings: ServeConfig) -> None:
    """UserError for numbers out of range and an address that cannot be listened on."""
    for key in ("max_batch_size", "queue", "max_n"):
        if settings[key] < 1:
            raise UserError(f"{key}={settings[key]} must be at least 1")
    if settings.batch_timeout < 0:
        raise UserError(f"batch_timeout={settings.batch_timeout} must be at least 0")
    if settings.host not in HOSTS or not 1024 <= settings.port <= 65535:
        raise UserError(f"host= is one of {', '.join(HOSTS)}, and port= from 1024 to 65535")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as error:
        raise UserError(f"cannot listen on port {settings.port}: {error.strerror}") from error


if __name__ == "__main__":
    cli.run(main, __doc__)
