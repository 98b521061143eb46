"""Connections of the server and the page that do not get on are closed, so that others get in."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol  # which bounds what headers take

PATIENCE = 30  # seconds in which a request has to arrive, and an answer to be taken
DAWDLING = 256  # connections that may take so long; of more, the oldest is closed


class Connection(H11Protocol):
    """A connection that is closed when it does not get on, unless it is we who let it wait.

    Applications find it in `scope["state"]`, and tell it when a request has arrived.
    """

    dawdling: dict[Connection, asyncio.TimerHandle] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app_state = {**self.app_state, "connection": self}

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.hurry()

    def connection_lost(self, error: Exception | None) -> None:
        self.rest()
        super().connection_lost(error)

    def on_response_complete(self) -> None:
        self.hurry()
        super().on_response_complete()

    def hurry(self) -> None:
        """From now on it is the client's turn, to take its answer or to ask."""
        self.rest()
        if self in self.connections:  # otherwise it is lost
            self.dawdling[self] = self.loop.call_later(PATIENCE, self.end)
        if len(self.dawdling) > DAWDLING:
            next(iter(self.dawdling)).end()

    def rest(self) -> None:
        """From now on it is our turn."""
        if timer := self.dawdling.pop(self, None):
            timer.cancel()

    def end(self) -> None:
        self.rest()
        self.transport.abort()
