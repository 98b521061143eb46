"""Whom the server and the page answer, by the request's host, origin and size."""

import re
from unittest.mock import MagicMock

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.responses import Response
from starlette.testclient import TestClient

from scm_core.apps.web import guard

HERE = "127.0.0.1"


def client(host=HERE, **options):
    async def app(scope, receive, send):
        request = await receive()
        await Response(str(len(request["body"])))(scope, receive, send)

    guarded = guard.Guard(app, host, **options)

    async def connected(scope, receive, send):
        await guarded({**scope, "state": {"connection": MagicMock()}}, receive, send)

    return TestClient(connected)


@pytest.mark.parametrize(
    "host, name, status",
    [
        (HERE, "127.0.0.1:8000", 200),
        (HERE, "localhost:8000", 200),
        (HERE, "LOCALHOST", 200),
        (HERE, "[::1]:8000", 200),
        (HERE, "127.8.8.8", 200),
        (HERE, "rebound.example:8000", 421),
        (HERE, "localhost.rebound.example", 421),
        (HERE, "127.0.0.1.rebound.example", 421),
        (HERE, "192.168.1.5:8000", 421),
        (HERE, "", 421),
        (HERE, "[", 421),
        ("0.0.0.0", "192.168.1.5:8000", 200),
        ("0.0.0.0", "rebound.example", 421),
        ("::", "[fe80::1]:8000", 200),
        ("192.168.1.5", "192.168.1.5:8000", 200),
        ("192.168.1.5", "192.168.1.6:8000", 421),
    ],
)
def test_a_host_is_known_by_its_addresses_and_not_by_others_names(host, name, status):
    answer = client(host).get("/", headers={"Host": name})
    assert answer.status_code == status
    if status == 421:
        assert "allowed_hosts= can add a name" in answer.json()["detail"]


@pytest.mark.parametrize("names", ["Models.example", ["models.example", "other.example"]])
def test_allowed_hosts_are_known_too(names):
    asked = client(allowed_hosts=names)
    assert asked.get("/", headers={"Host": "models.example"}).status_code == 200
    assert asked.get("/", headers={"Host": "rebound.example"}).status_code == 421
    proxied = {"Host": HERE, "Origin": "https://models.example"}
    assert asked.post("/", headers=proxied).status_code == 200


@pytest.mark.parametrize(
    "origin, status",
    [
        ("http://127.0.0.1:8000", 200),
        ("http://rebound.example:8000", 403),
        ("http://127.0.0.1:3000", 403),
        ("http://localhost", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_a_page_of_another_site_may_not_ask(origin, status):
    headers = {"Host": "127.0.0.1:8000", "Origin": origin}
    for method in ("POST", "GET", "OPTIONS"):
        assert client().request(method, "/", headers=headers).status_code == status


def test_a_body_is_bounded_whether_or_not_its_length_is_told():
    def parts():
        for _ in range(100):
            yield b" " * guard.MAX_BYTES

    asked = client()
    assert asked.post("http://127.0.0.1/", content=b" " * guard.MAX_BYTES).text == "65536"
    for content in (b" " * (guard.MAX_BYTES + 1), parts()):
        answer = asked.post("http://127.0.0.1/", content=content)
        assert answer.status_code == 413 and answer.json() == {"detail": guard.TOO_LARGE}


def test_nothing_is_served_but_the_paths_that_are_named():
    asked = client(paths=re.compile("/|/run/.+"))
    for path, status in {"/": 200, "/run/1": 200, "/upload": 404, "/run": 404, "//": 404}.items():
        assert asked.get(f"http://127.0.0.1{path}").status_code == status


def test_who_opens_the_server_to_other_machines_is_told_so():
    assert guard.reach("127.0.0.1", ()) == ""
    said = guard.reach("::", "models.example")
    assert "as localhost, models.example; allowed_hosts= adds" in said and "\n" not in said
    assert [guard.bracketed(host) for host in ("::", "0.0.0.0")] == ["[::]", "0.0.0.0"]
