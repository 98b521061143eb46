"""Who waits for samples: as many requests as there are places.

A request has its place from when it has arrived until its answer is sent or its client has left.
"""

from __future__ import annotations

import asyncio
import time
from multiprocessing.sharedctypes import RawArray

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scm_core.apps.serving.http import PATH, TICKET, TOGETHER, Ticket
from scm_core.apps.web.guard import refusal

REQUESTS = Counter("scm_requests", "Answers to requests for samples", ["status"])
SECONDS = Histogram("scm_request_seconds", "From a request to its answer")
BATCHES = Histogram(
    "scm_batch_requests",
    "Requests drawn together with one, itself included",
    buckets=(1, 2, 4, 8, 16, 32, 64),
)
WAITING = Gauge("scm_requests_waiting", "Requests that wait or are being drawn")


class Places:
    """The places of the requests that wait or are being drawn, in memory that processes share."""

    def __init__(self, queue: int) -> None:
        self.numbers, self.last = RawArray("Q", queue), 0

    def taken(self) -> int:
        return sum(map(bool, self.numbers))

    def take(self) -> Ticket | None:
        """A place for the next request, if one is free."""
        for place, number in enumerate(self.numbers):
            if not number:
                self.last += 1
                self.numbers[place] = self.last
                return place, self.last
        return None

    def waits(self, ticket: Ticket) -> bool:
        place, number = ticket
        return self.numbers[place] == number

    def leave(self, ticket: Ticket) -> None:
        if self.waits(ticket):
            self.numbers[ticket[0]] = 0


class Gate:
    """Lets as many requests in as there are places, answers 429 to more, and measures them."""

    def __init__(self, app: ASGIApp, places: Places) -> None:
        self.app, self.places = app, places
        WAITING.set_function(places.taken)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
        elif ticket := self.places.take():
            TICKET.set(ticket)
            await self.measured(ticket, scope, receive, send)
        else:
            REQUESTS.labels(429).inc()
            full = refusal(429, f"{len(self.places.numbers)} requests wait already; try again soon")
            full.headers["retry-after"] = "1"
            await full(scope, receive, send)

    async def measured(self, ticket: Ticket, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a whole request on, and keep count of it, its answer, and whether its client left.

        One that left is not forgotten here before the process that draws has passed it over.
        """
        status, started = 500, time.perf_counter()
        messages = [await receive()]

        async def left() -> Message:
            while (message := await receive())["type"] != "http.disconnect":
                pass
            self.places.leave(ticket)
            return message

        leaving = asyncio.create_task(left())

        async def given() -> Message:
            return messages.pop() if messages else await asyncio.shield(leaving)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if together := dict(message["headers"]).get(TOGETHER.encode()):
                    BATCHES.observe(int(together))
                self.places.leave(ticket)
            await send(message)

        try:
            await self.app(scope, given, watched)
        finally:
            leaving.cancel()
            self.places.leave(ticket)
            REQUESTS.labels(status).inc()
            SECONDS.observe(time.perf_counter() - started)
