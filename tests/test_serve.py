"""The server: real requests to a real process, alone and together, right and wrong."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import toy_plugin
from environment import ROOT
from hypothesis import HealthCheck, given, settings
from PIL import Image

from scm_core import checkpoint, provenance, sample, serve
from scm_core.errors import UserError

schemathesis = pytest.importorskip("schemathesis")
pytest.importorskip("litserve")

WORDS = ["modality=[image,toy_plugin:SPEC]", "max_n=4", "queue=8", "batch_timeout=0.1"]


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


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a server of the shipped images and of a plugin that is not installed; it stops cleanly."""
    folder = tmp_path_factory.mktemp("server")
    toy_plugin.write_student(folder / "runs" / "toy-cpu" / "student.safetensors")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "scm_core.serve", *WORDS, f"port={port}"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not healthy(f"http://127.0.0.1:{port}"):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.2)
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
    assert status == 413 and json.loads(content) == {"detail": "Payload too large"}


def test_more_requests_than_may_wait_are_told_so(address):
    with ThreadPoolExecutor(16) as pool:
        wanted = {"modality": "image", "n": 4, "steps": 64}
        answers = list(pool.map(lambda _: fetch(f"{address}/sample", wanted), range(16)))
    assert {status for status, *_ in answers} == {200, 429}
    full = next(answer for answer in answers if answer[0] == 429)
    assert full[1]["retry-after"] == "1" and b"8 requests wait already" in full[2]
    assert fetch(f"{address}/sample", {"modality": "image"})[0] == 200


def test_metrics_count_what_was_answered(address):
    def answered(status):
        lines = fetch(f"{address}/metrics")[2].decode().splitlines()
        name = f'scm_requests_total{{status="{status}"}} '
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = answered(200), answered(422)
    fetch(f"{address}/sample", {"modality": "toy"})
    fetch(f"{address}/sample", {"modality": "toy", "n": 0})
    assert (answered(200), answered(422)) == (before[0] + 1, before[1] + 1)


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
        assert case.call().status_code < 500

    draw()
    assert healthy(address)


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "give checkpoint=FILE, or modality=NAME"),
        (["modality=sculpture"], "no modality is called sculpture"),
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
    monkeypatch.delattr("scm_core.serving.sampler", raising=False)
    monkeypatch.delitem(sys.modules, "scm_core.serving.sampler", raising=False)
    monkeypatch.setitem(sys.modules, "litserve", None)
    with pytest.raises(UserError, match=r"pip install 'scm-core\[serve\]'"):
        serve.main(["modality=image", f"port={free_port()}"])


@pytest.mark.parametrize(
    "modality, formats",
    [("image", ("png",)), ("audio", ("wav", "flac", "png")), ("video", ("mp4", "gif", "png"))],
)
def test_formats_are_those_that_the_decoder_saves(modality, formats):
    from scm_core.serving.sampler import describe

    model = sample.open_checkpoint(None, modality, device="cpu")
    assert describe(model).formats == formats
