"""Whom the server and the page answer: their own names, their own pages, whole small requests.

A page of another site can send a browser here, by a name of its own that it lets point to this
machine (DNS rebinding), or by a form: such requests carry that name in `Host`, or in `Origin`.
"""

from __future__ import annotations

import contextlib
import re
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scm_core.base.arguments import several

MAX_BYTES = 65_536  # of a request
TOO_LARGE = f"the request is larger than {MAX_BYTES} bytes"
EVERYWHERE = ("0.0.0.0", "::")


class Guard:
    """Middleware that refuses what comes from another site or is too large.

    What it passes on has arrived as a whole, which the connection is told. `allowed_hosts` are
    names, or one, beside localhost and the addresses that are listened on; `paths` are served,
    where not all are.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        allowed_hosts: Any = None,
        paths: re.Pattern[str] | None = None,
    ) -> None:
        self.app, self.host, self.paths = app, host, paths
        self.allowed = set(named(allowed_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif refused := self.refused(scope):
            await refused(scope, receive, send)
        else:
            with contextlib.suppress(ClientDisconnect):
                body = await whole(receive)
                answer = self.app if len(body) <= MAX_BYTES else refusal(413, TOO_LARGE)
                await in_turn(answer)(scope, again(body, receive), send)

    def refused(self, scope: Scope) -> JSONResponse | None:
        """Why a request is not for here, if so."""
        headers = Headers(scope=scope)
        name, origin = hostname(headers.get("host", "")), headers.get("origin")
        if not self.knows(name):
            return refusal(421, f"nothing here is called {name!r}; allowed_hosts= can add a name")
        if origin is not None and not self.same(origin, headers["host"]):
            return refusal(403, f"a page of {origin} may not ask here")
        if self.paths and not self.paths.fullmatch(scope["path"]):
            return refusal(404, "there is nothing here")
        return None

    def knows(self, name: str) -> bool:
        """Is this what we are called? Any address is, where all addresses are listened on."""
        if name in {"localhost", self.host, *self.allowed}:
            return True
        try:
            return ip_address(name).is_loopback or self.host in EVERYWHERE
        except ValueError:
            return False

    def same(self, origin: str, host: str) -> bool:
        """Is a page with that origin one of ours, as it was asked for or by an allowed name?"""
        place = origin.partition("://")[2]
        return place == host or hostname(place) in self.allowed


def hostname(place: str) -> str:
    """The name of a `name:port`, in small letters; empty for what is none."""
    try:
        return urlsplit(f"//{place}").hostname or ""
    except ValueError:
        return ""


async def whole(receive: Receive) -> bytes:
    """A request's body, of which no more than MAX_BYTES + 1 is kept.

    It is read to its end all the same: who still sends would not read that it is too large. Raises
    ClientDisconnect where the client leaves before.
    """
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")[: MAX_BYTES + 1 - len(body)]
        more = message.get("more_body", False)
    return body


def in_turn(app: ASGIApp) -> ASGIApp:
    """The same, which tells its connection that it is our turn until the answer begins."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope["state"]["connection"]

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                connection.hurry()
            await send(message)

        connection.rest()
        await app(scope, receive, sent)

    return answer


def again(body: bytes, receive: Receive) -> Receive:
    """The `receive` of a request whose body has been read."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received


def refusal(status: int, sentence: str) -> JSONResponse:
    """An error that is the client's, in one line."""
    printable = sentence.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"detail": printable}, status)


def named(allowed_hosts: Any) -> list[str]:
    """The names of a word that gives one or several."""
    return [name.lower() for name in several(allowed_hosts)]


def bracketed(host: str) -> str:
    """A host as addresses have it."""
    return f"[{host}]" if ":" in host else host


def reach(host: str, allowed_hosts: Any) -> str:
    """What to tell who opens an address to other machines; empty where it is not."""
    if host not in EVERYWHERE:
        return ""
    names = ", ".join(["localhost", *named(allowed_hosts)])
    return (
        f"open to all who reach this machine, by its addresses and as {names}; allowed_hosts= "
        "adds names"
    )
