"""What is asked and answered over HTTP: request models, limits, errors, OpenAPI."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable
from contextvars import ContextVar
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    WithJsonSchema,
    create_model,
)

import scm_core
from scm_core.apps.web.guard import TOO_LARGE, refusal
from scm_core.base.errors import UserError
from scm_core.contract.fields import Field as ConditionField
from scm_core.contract.fields import Schema

PATH = "/sample"
MAX_STEPS = 64
MAX_SEED = 2**32 - 1
ZIP = "application/zip"
TOGETHER = "x-batch-requests"  # the header that says how many requests were drawn together
STRICT = ConfigDict(extra="forbid", strict=True)
REFUSALS = {
    403: "a page of another site asks",
    413: TOO_LARGE,
    421: "the host that is asked is none that is served",
    422: "the request is not as described; a one-line message says where",
    429: "as many requests wait as may",
}

Ticket = tuple[int, int]  # a request's place among those that wait, and its number
TICKET: ContextVar[Ticket] = ContextVar("TICKET")  # of the request that is being answered

mimetypes.add_type("audio/flac", ".flac")  # which Python 3.11 does not know


class Served(NamedTuple):
    """A model that is served, and what requests to it may ask for, the default first.

    It is that of `modality`, as its file at `path` calls it.
    """

    path: Path
    modality: str
    condition: Schema
    steps: int
    formats: tuple[str, ...]


def media_type(ending: str) -> str:
    """Of files with that ending."""
    return mimetypes.guess_type(f"_.{ending}")[0] or "application/octet-stream"


def body(served: dict[str, Served], max_n: int) -> Any:
    """The type of requests to these models, by their `modality`; validated, they are plain dicts.

    Plain, since the classes are made here and could not be sent to the process that draws.
    """
    models = [request_model(name, one, max_n, len(served) > 1) for name, one in served.items()]
    request = reduce(or_, models)
    if len(models) > 1:
        request = Annotated[request, Discriminator("modality")]
    return Annotated[request, AfterValidator(plain)]


def request_model(name: str, served: Served, max_n: int, several: bool) -> type[BaseModel]:
    """A request to one model; `modality` may be left out unless several are served."""
    fields = {key: (condition_type(field), None) for key, field in served.condition.items()}
    condition = create_model(f"{name} condition", __config__=STRICT, **fields)
    return create_model(
        f"{name} request",
        __config__=STRICT,
        modality=(Literal[name], ... if several else name),
        condition=(condition, Field(condition(), description="what is not given goes in turn")),
        steps=(int, Field(served.steps, ge=1, le=MAX_STEPS)),
        seed=(int, Field(0, ge=0, le=MAX_SEED, description="the same seed, the same samples")),
        n=(int, Field(1, ge=1, le=max_n, description="more than one come as a ZIP archive")),
        format=(Literal[served.formats], served.formats[0]),
    )


def condition_type(field: ConditionField) -> Any:
    """A condition's value as people write it, read by the rules of `scm_core.sample`."""

    def read(value: Any) -> Any:
        try:
            if value is not None:
                field.check(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    return Annotated[Any, AfterValidator(read), WithJsonSchema(field.json_schema())]


def plain(request: BaseModel) -> dict[str, Any]:
    """A request in plain containers, apart from what it does not give."""
    return {
        "modality": request.modality,
        "condition": request.condition.model_dump(exclude_none=True),
        "format": request.format,
        "settings": request.model_dump(include={"steps", "seed", "n"}),
        "ticket": TICKET.get(),
    }


async def invalid(_: Request, error: RequestValidationError) -> Response:
    """What is wrong first with a request, and where."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return refusal(422, "the request is not JSON")
    where = [str(part) for part in first["loc"][1:]]
    reason = first["msg"].removeprefix("Value error, ")
    return refusal(422, f"{'.'.join(where)}: {reason}" if where else reason)


def complete(app: FastAPI, served: dict[str, Served]) -> None:
    """Give LitServe's application the metrics, one-line errors, and a full description."""
    app.title, app.version = "scm-core", scm_core.__version__
    app.add_exception_handler(RequestValidationError, invalid)

    @app.get("/metrics", summary="Metrics in the format of Prometheus")
    def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app.openapi = described(
        app.openapi, {media_type(e) for s in served.values() for e in s.formats}
    )


def described(openapi: Callable[[], dict[str, Any]], kinds: set[str]) -> Callable[[], dict]:
    """FastAPI's description, with answers that LitServe's endpoint does not state."""

    def full() -> dict[str, Any]:
        document = openapi()
        refused = {"schema": {"type": "object", "properties": {"detail": {"type": "string"}}}}
        file = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in (*kinds, ZIP)}
        document["paths"][PATH]["post"] |= {
            "summary": "Draw samples",
            "responses": {
                "200": {"description": "the file, or a ZIP archive of n files", "content": file},
                **{
                    str(status): {"description": why, "content": {"application/json": refused}}
                    for status, why in REFUSALS.items()
                },
            },
        }
        return document

    return full
