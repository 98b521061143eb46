"""The server: real requests to a real process, alone and together, right and wrong."""

import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
import toy_plugin
from environment import ROOT
from hypothesis import HealthCheck, given, settings
from omegaconf import OmegaConf
from PIL import Image

from scm_core.apps import sample
from scm_core.apps.opening import open_checkpoint
from scm_core.apps.serving import serve
from scm_core.base.errors import UserError
from scm_core.data import media, provenance
from scm_core.engine import checkpoint

schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip("litserve")
uvicorn = pytest.importorskip("uvicorn")

WORDS = ["modality=[image,toy_plugin:SPEC]", "max_n=4", "queue=8", "batch_timeout=0.1"]
WORDS += ["allowed_hosts=models.example"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def fetch(address, body=None):
    """The status, headers and content of an answer; `body` is sent as JSON, or as it is."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(address, content, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=120) as answer:
            return answer.status, answer.headers, answer.read()
    except HTTPError as error:
        return error.code, error.headers, error.read()


def healthy(address):
    try:
        return fetch(f"{address}/health")[0] == 200
    except URLError:
        return False


def until(condition):
    while not condition():  # as long as the test may take
        time.sleep(0.05)


def started(folder, port):
    """A server of the shipped images and of a plugin that is not installed, once it answers."""
    toy_plugin.write_student(folder / "runs" / "toy-cpu" / "student.safetensors")
    process = subprocess.Popen(
        [sys.executable, "-m", "scm_core.serve", *WORDS, f"port={port}"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not healthy(f"http://127.0.0.1:{port}"):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)
    return process


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a server that stops cleanly in the end."""
    port = free_port()
    process = started(tmp_path_factory.mktemp("server"), port)
    try:
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        said, _ = process.communicate()
        assert process.returncode == 0 and said.endswith("stopped\n") and "Traceback" not in said
    finally:
        process.kill()


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def files(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_one_sample_is_a_file_that_says_how_it_was_made(address, tmp_path):
    wanted = {"modality": "image", "condition": {"label": "coat"}, "seed": 7}
    status, headers, content = fetch(f"{address}/sample", wanted)
    assert status == 200 and headers["content-type"] == "image/png"
    (tmp_path / "one.png").write_bytes(content)
    facts = provenance.read(tmp_path / "one.png")
    student = ROOT / "checkpoints" / "image" / "student.safetensors"
    assert facts["checkpoint sha256"] == checkpoint.load(student).sha256
    assert (facts["label"], facts["seed"], facts["steps"], facts["n"]) == ("coat", 7, 2, 1)


def test_several_are_an_archive_of_what_the_command_draws(address, tmp_path):
    words = ["n=3", "seed=5", "steps=3", "label=[bag,2]"]
    sample.main(["modality=image", *words, f"out={tmp_path}"])
    wanted = {"n": 3, "seed": 5, "steps": 3, "condition": {"label": ["bag", 2]}}
    status, headers, content = fetch(f"{address}/sample", {"modality": "image", **wanted})
    assert status == 200 and headers["content-type"] == "application/zip"
    drawn = files(content)
    assert list(drawn) == ["00000.png", "00001.png", "00002.png"]
    for name, one in drawn.items():
        assert abs(pixels(one) - pixels((tmp_path / name).read_bytes())).mean() < 0.5


def test_others_in_the_batch_change_nothing(address):
    """The very samples of a request alone, but for rounding, whoever it is drawn with."""
    wanted = {"modality": "image", "n": 2, "seed": 3, "steps": 3, "condition": {"label": 8}}
    others = [{**wanted, "seed": seed, "n": 1 + seed % 4} for seed in range(4)]
    others += [{"modality": "toy"}, {**wanted, "steps": 2}]
    status, headers, alone = fetch(f"{address}/sample", wanted)
    assert status == 200 and headers["x-batch-requests"] == "1"
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: fetch(f"{address}/sample", one), [*others, wanted]))
    assert {status for status, *_ in answers} == {200}
    _, headers, together = answers[-1]
    assert int(headers["x-batch-requests"]) > 1
    for name, one in files(alone).items():
        assert abs(pixels(one) - pixels(files(together)[name])).mean() < 0.5
    differs = files(answers[1][2])["00000.png"]
    assert abs(pixels(differs) - pixels(files(alone)["00000.png"])).mean() > 5


def test_a_plugin_of_another_package_is_served(address):
    wanted = {"modality": "toy", "condition": {"pitch": 1}, "n": 2}
    status, _, content = fetch(f"{address}/sample", wanted)
    assert status == 200 and len(files(content)) == 2


def test_a_codec_may_save_more_than_one_file_of_a_kind(tmp_path, monkeypatch):
    """What is sent is the one that is called as it was told."""
    from scm_core.apps.serving import sampler

    def save(self, wave, path):
        media.write_png(self.preview(wave[None]), f"{path}-larger.png")
        return media.write_png(self.preview(wave[None]), f"{path}.png")

    monkeypatch.setattr(toy_plugin.ToyCodec, "save", save)
    path = tmp_path / "student.safetensors"
    toy_plugin.write_student(path)
    model = open_checkpoint(str(path), "toy_plugin:SPEC", device="cpu")
    assert sampler.describe(model).formats == ("png",)
    (wave,) = model.codec.decode(torch.zeros(1, *model.shape))
    assert sampler.encoded(model.codec.save, wave, "png", {}).startswith(b"\x89PNG")


REFUSED = {
    "modality": ({"modality": "sculpture"}, "'sculpture'.*'image', 'toy'"),
    "none": ({}, "modality"),
    "class": ({"modality": "image", "condition": {"label": "hat"}}, "label: no class 'hat': give"),
    "condition": ({"modality": "image", "condition": {"labl": 3}}, "condition.labl: Extra"),
    "n": ({"modality": "image", "n": 5}, "n: Input should be less than or equal to 4"),
    "steps": ({"modality": "image", "steps": 65}, "steps: .*equal to 64"),
    "format": ({"modality": "image", "format": "mp4"}, "format: Input should be 'png'"),
    "seed": ({"modality": "image", "seed": -1}, "seed: "),
    "unicode": ({"modality": "image", "\ud800": 1}, "unicode"),
    "json": (b"{'modality'", "not JSON"),
    "list": ([1], "."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_a_request_is_one_sentence(address, case):
    wanted, sentence = REFUSED[case]
    status, _, content = fetch(f"{address}/sample", wanted)
    assert status == 422
    detail = json.loads(content)["detail"]
    assert "\n" not in detail and re.search(sentence, detail)


def test_a_request_that_is_too_large_is_refused(address):
    status, _, content = fetch(f"{address}/sample", b" " * 70_000)
    assert status == 413 and b"larger than 65536 bytes" in content


def metric(address, name):
    lines = fetch(f"{address}/metrics")[2].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def answered(address, status):
    return metric(address, f'scm_requests_total{{status="{status}"}}')


def test_metrics_count_what_was_answered(address):
    before = answered(address, 200), answered(address, 422)
    fetch(f"{address}/sample", {"modality": "toy"})
    fetch(f"{address}/sample", {"modality": "toy", "n": 0})
    after = answered(address, 200), answered(address, 422)
    assert after == (before[0] + 1, before[1] + 1)


def asked(address, body, length=None):
    """A connection with a request for samples, of which `length` bytes are announced."""
    host, _, port = address.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)), timeout=120)
    said = f"Content-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n"
    client.sendall(f"POST /sample HTTP/1.1\r\nHost: {host}\r\n{said}".encode() + body)
    return client


def test_slow_clients_lock_nobody_out(address):
    """More of them than requests may wait, and more than connections may dawdle."""
    from scm_core.apps.web.connection import DAWDLING

    slow = [asked(address, b"{", length=10) for _ in range(DAWDLING + 20)]
    assert metric(address, "scm_requests_waiting") == 0
    assert fetch(f"{address}/sample", {"modality": "toy"})[0] == 200
    with contextlib.suppress(ConnectionResetError):
        assert slow[0].recv(1) == b""  # the first is closed by then
    for client in slow:
        client.close()


def test_more_requests_than_may_wait_are_told_so_and_those_that_left_are_not_drawn(address):
    body = json.dumps({"modality": "image", "n": 4, "steps": 64}).encode()
    before = answered(address, 499)
    clients = [asked(address, body) for _ in range(8)]
    until(lambda: metric(address, "scm_requests_waiting") == 8)
    status, headers, content = fetch(f"{address}/sample", {"modality": "image"})
    assert status == 429 and headers["retry-after"] == "1" and b"8 requests wait" in content
    for client in clients:
        client.close()
    until(lambda: metric(address, "scm_requests_waiting") == 0)
    until(lambda: answered(address, 499) == before + 8)
    assert fetch(f"{address}/sample", {"modality": "image"})[0] == 200


def test_drawing_ends_with_the_step_after_which_nobody_waits():
    from scm_core.apps.serving import gate, sampler

    model, places = open_checkpoint(None, "image", device="cpu"), gate.Places(2)
    settings = OmegaConf.structured(serve.ServeConfig)
    drawing = sampler.Sampler({"image": sampler.describe(model)}, {}, settings, places)
    tickets, steps = [places.take(), places.take()], []

    def evaluate(x, t, condition):
        steps.append(len(x))
        places.leave(tickets[len(steps) - 1])  # one after each step
        return x

    vars(model)["model"] = evaluate
    drawing.models = {"image": model}
    wanted = {"modality": "image", "condition": {}, "format": "png"}
    wanted["settings"] = {"steps": 8, "seed": 0, "n": 1}
    requests = [drawing.decode_request({**wanted, "ticket": ticket}) for ticket in tickets]
    answers = [drawing.encode_response(drawn) for drawn in drawing.predict(requests)]
    assert steps == [2, 2] and [answer.status_code for answer in answers] == [499, 499]


LARGE = b" " * 10_000_000  # more than fits on the way


@pytest.mark.parametrize(
    "headers", ["Host", "Host: x\r\n\r\n", "Host: x\r\nConnection: close\r\n\r\n"]
)
def test_a_client_that_does_not_get_on_is_disconnected(monkeypatch, headers):
    """One that asks too slowly, and one that asks and takes no answer."""
    from scm_core.apps.web import connection

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": LARGE})

    async def talk():
        config, lost = uvicorn.Config(app, log_level="error"), asyncio.Event()
        state = uvicorn.server.ServerState()

        class Watched(connection.Connection):
            def connection_lost(self, error):
                super().connection_lost(error)
                lost.set()

        config.load()
        made = partial(Watched, config=config, server_state=state, app_state={})
        server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.transport.pause_reading()
        writer.write(f"GET / HTTP/1.1\r\n{headers}".encode())
        await lost.wait()
        assert not connection.Connection.dawdling
        server.close()

    monkeypatch.setattr(connection, "PATIENCE", 0.1)
    asyncio.run(talk())


def test_a_request_by_another_name_or_from_another_site_is_refused(address):
    def status(**headers):
        try:
            return urlopen(Request(f"{address}/sample", b"{}", headers), timeout=120).status
        except HTTPError as error:
            return error.code

    kind = {"Content-Type": "application/json"}
    assert status(Host="models.example", **kind) == 422  # which modality?
    assert status(Host="rebound.example", **kind) == 421
    assert status(Origin="http://rebound.example", **kind) == 403


def test_a_process_that_ends_ends_the_server():
    from scm_core.apps.serving import processes

    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=time.sleep, args=(600,), name=name) for name in "ab"]
    for process in started:
        process.start()
    started[0].kill()
    with pytest.raises(UserError, match=r"ended, a \(SIGKILL\), and with it the server"):
        processes.Server.watch(SimpleNamespace(started=started))
    assert not started[1].is_alive()


def test_the_description_has_a_page_and_real_types(address):
    assert b"swagger" in fetch(f"{address}/docs")[2]
    described = json.loads(fetch(f"{address}/openapi.json")[2])
    kinds = described["components"]["schemas"]
    assert kinds["image_request"]["properties"]["n"]["maximum"] == 4
    assert "sneaker" in kinds["image_condition"]["properties"]["label"]["anyOf"][0]["enum"]
    assert "image/png" in described["paths"]["/sample"]["post"]["responses"]["200"]["content"]


def test_no_request_of_a_fuzzer_is_the_servers_fault(address):
    """Requests that fit the description, and such as do not: of neither does the server fail."""
    described = schemathesis.openapi.from_url(f"{address}/openapi.json")

    @settings(
        max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=described["/sample"]["POST"].as_strategy())
    def draw(case):
        assert case.call(timeout=300).status_code < 500  # as long as the test may take

    draw()
    assert healthy(address)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "give checkpoint=FILE, or modality=NAME"),
        (["modality=sculpture"], "no modality is called sculpture"),
        (["modality=5"], "no modality is called 5"),
        (["modality=image", "max_n=0"], "max_n=0 must be at least 1"),
        (["modality=image", "port=80"], "port= from 1024"),
        (["modality=image", "host=example"], "host= is one of 127.0.0.1"),
        (["modality=[image,audio]", "checkpoint=x"], "checkpoint= is one model"),
    ],
)
def test_words_that_cannot_be_served(words, sentence):
    with pytest.raises(UserError, match=sentence):
        serve.main([f"port={free_port()}", *words])


def test_a_port_that_is_taken_and_a_missing_extra(address, monkeypatch):
    with pytest.raises(UserError, match="cannot listen on port"):
        serve.main(["modality=image", f"port={address.rpartition(':')[2]}"])
    monkeypatch.delattr("scm_core.apps.serving.sampler", raising=False)
    monkeypatch.delitem(sys.modules, "scm_core.apps.serving.sampler", raising=False)
    monkeypatch.setitem(sys.modules, "litserve", None)
    with pytest.raises(UserError, match=r"pip install 'scm-core\[serve\]'"):
        serve.main(["modality=image", f"port={free_port()}"])


@pytest.mark.parametrize(
    "modality, formats",
    [("image", ("png",)), ("audio", ("wav", "flac", "png")), ("video", ("mp4", "gif", "png"))],
)
def test_formats_are_those_that_the_decoder_saves(modality, formats):
    from scm_core.apps.serving.sampler import describe

    model = open_checkpoint(None, modality, device="cpu")
    assert describe(model).formats == formats


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["first", "queues", "draws", "answers"])
def test_a_server_that_loses_a_process_leaves_none(tmp_path, killed):
    """However one of its processes was killed: no port stays open, and no process."""
    port = free_port()
    server = started(tmp_path, port)
    path = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    queues, _, draws, answers = children = path.read_text().split()  # the second is Python's own
    os.kill(int({**locals(), "first": server.pid}[killed]), signal.SIGKILL)
    said, _ = server.communicate()
    if killed != "first":
        assert server.returncode == 2 and "(SIGKILL), and with it the server" in said
        assert "Traceback" not in said
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    with pytest.raises(URLError):
        urlopen(f"http://127.0.0.1:{port}/health", timeout=120)
