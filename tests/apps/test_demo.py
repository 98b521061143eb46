"""The live page: its controls, its tabs with strangers among them, and all of it in a browser."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import toy_plugin
from strangers import install

from scm_core.apps.page.demo import main, open_tabs
from scm_core.apps.page.live import conditions
from scm_core.base.errors import UserError
from scm_core.contract.fields import Label, Vector
from scm_core.data import provenance

SCHEMA = {"kind": Label(3, ("a", "b", "c")), "pitch": Label(4, first=60), "pose": Vector(2)}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy plugin installed, an untrained student of it in runs/, and one that breaks."""
    monkeypatch.chdir(tmp_path)
    install(tmp_path / "toy", "toy", "toy_plugin:SPEC", monkeypatch, "toy")
    (tmp_path / "broken.py").write_text("raise RuntimeError('out of luck')")
    install(tmp_path, "broken", "broken:SPEC", monkeypatch, "broken")
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    student = tmp_path / "runs" / "toy-1" / "student.safetensors"
    toy_plugin.write_student(student, "toy")
    return student


def test_a_plugin_of_another_package_gets_a_tab_and_a_broken_one_a_sentence(toy):
    tabs = open_tabs(["toy", "broken"])
    assert tabs["broken"].endswith("is broken: RuntimeError: out of luck")
    drawn = tabs["toy"].draw({"pitch": "1"}, seed=3, steps=4, n=2)
    assert [file.title for file in drawn.files] == ["1", "1"] and drawn.nfe == 4
    assert drawn.lasts is None and tabs["toy"].teacher is None
    with pytest.raises(UserError, match="no class '9'"):
        tabs["toy"].draw({"pitch": "9"})
    page = pytest.importorskip("scm_core.apps.page.page", exc_type=ImportError)
    shown = str(page.build(tabs).get_config_file())
    assert "Toy" in shown and "out of luck" in shown
    assert "&lt;b&gt;" in page.notice("<b>")


def test_a_page_without_any_student_is_one_sentence(toy):
    with pytest.raises(UserError, match="out of luck"):
        open_tabs(["broken"])
    with pytest.raises(UserError, match="did you mean toy"):
        open_tabs(["toi"])


def test_a_file_says_how_it_was_made(toy, tmp_path):
    (file,) = open_tabs(["toy"])["toy"].draw({"pitch": "1"}, seed=3).files
    (tmp_path / file.name).write_bytes(file.data)
    facts = provenance.read(tmp_path / file.name)
    assert (facts["model"], facts["seed"], facts["pitch"]) == ("toy student, step 0", 3, 1)


def test_classes_go_in_turn_from_the_seed_on():
    given = conditions(SCHEMA, {"pitch": "62"}, seed=4, n=3)
    assert given["kind"].tolist() == [1, 2, 0] and given["pitch"].tolist() == [2, 2, 2]
    assert not given["pose"].any()


def test_controls_follow_the_schema():
    page = pytest.importorskip("scm_core.apps.page.page", exc_type=ImportError)
    kind, pitch, pose = page.controls(SCHEMA).values()
    assert [name for _, name in kind.choices] == ["", "a", "b", "c"]
    assert (pitch.minimum, pitch.maximum, pose.get_block_name()) == (59, 63, "textbox")
    assert page.asked(SCHEMA, ("b", 61, "1,2")) == {"kind": "b", "pitch": "61", "pose": "1,2"}
    assert page.asked(SCHEMA, ("", 59, "")) == {}
    seed, *chosen = page.surprise(SCHEMA, ("", 59, "1,2"))
    assert 0 <= seed < page.SEEDS and chosen[2] == "1,2"
    assert chosen[0] in "abc" and 60 <= chosen[1] <= 63


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "scm_core.apps.page.page", raising=False)
    monkeypatch.delattr("scm_core.apps.page.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'scm-core\[demo\]'"):
        main([])


def test_the_page_takes_no_files_and_answers_no_other_site(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "kept"))
    page = pytest.importorskip("scm_core.apps.page.page", exc_type=ImportError)
    part = b"--B\r\nContent-Disposition: form-data; name=files; filename=x\r\n\r\nx\r\n--B--\r\n"
    file = {"path": "http://127.0.0.1:1/x", "meta": {"_type": "gradio.FileData"}}
    seen = {}

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def visit():
        def status(path, body=None, **headers):
            request = Request(f"http://127.0.0.1:{port}/{path}", body, headers)
            try:
                return urlopen(request, timeout=120).status
            except HTTPError as error:
                return error.code

        def drawn(*values, **headers):
            body, kind = json.dumps({"data": values}).encode(), "application/json"
            return status("gradio_api/run/draw", body, **headers, **{"Content-Type": kind})

        form = {"Content-Type": "multipart/form-data; boundary=B"}
        seen["upload"] = status("gradio_api/upload", part, **form)
        seen["elsewhere"] = [status(path) for path in ("monitoring", "gradio_api/file=x")]
        seen["page"], seen["drawn"] = status(""), drawn(0, 2, 1, 1)
        seen["rebound"] = drawn(0, 2, 1, 1, Host="rebound.example")
        seen["foreign"] = drawn(0, 2, 1, 1, Origin="http://rebound.example")
        seen["pointed at"] = drawn(0, 2, 1, file)

    def visit_and_leave(server):
        try:
            visit()
        finally:
            server.should_exit = True

    def run(server, listeners):
        with ThreadPoolExecutor() as pool:
            visits = pool.submit(visit_and_leave, server)
            asyncio.run(server.serve(listeners))
            visits.result()

    monkeypatch.setattr(page.uvicorn.Server, "run", run)
    tabs = open_tabs(["toy"])
    page.serve(tabs, "127.0.0.1", port)
    assert (seen["page"], seen["drawn"]) == (200, 200)
    assert (seen["upload"], seen["elsewhere"]) == (404, [404, 404])
    assert (seen["rebound"], seen["foreign"], seen["pointed at"]) == (421, 403, 500)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UserError, match="another port="):
        page.serve(tabs, "127.0.0.1", port)
    kept = (tmp_path / "kept").glob("**/*")
    assert not [path for path in kept if path.name != "vibe_edit_history"]


def test_the_page_wants_a_student():
    line = [
        sys.executable,
        "-m",
        "scm_core.demo",
        "checkpoint=checkpoints/image/teacher.safetensors",
    ]
    pytest.importorskip("gradio")
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2 and "the page wants a student" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs a browser: apt-get install chromium chromium-driver",
)
def test_the_page_in_a_browser():
    """Choose a class, drag the seed, play a sound, race: as a visitor does."""
    pytest.importorskip("gradio")
    pytest.importorskip("selenium")
    from page import opened

    with opened("modality=[image,audio]") as page:
        page.open_tab("Image")
        page.choose("label", "sneaker")
        assert "sneaker" in page.result.text
        assert page.drag_seed(10) > 2
        said = page.race()
        assert "Teacher, Heun 32 steps" in said and "126 NFE" in said and "2 NFE" in said
        assert said.count(" ms 126 NFE") == said.count(" ms 2 NFE") == 1
        page.open_tab("Audio")
        page.click("Generate")
        sound = page.named(".result audio")
        page.wait("arguments[0].currentTime > 0 && arguments[0].duration > 0.5", sound)
        fetched = "performance.getEntriesByType('resource').map(entry => entry.name)"
        for address in page.driver.execute_script(f"return {fetched}"):
            assert address.startswith(("http://127.0.0.1", "data:"))
