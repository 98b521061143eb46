"""Prompts everywhere: on the page, in its browser, to the server, and in what files say."""

import shutil

import pytest
import texts
from pydantic import TypeAdapter, ValidationError

from scm_core.apps.opening import open_checkpoint
from scm_core.apps.page.live import Live
from scm_core.base.errors import UserError
from scm_core.data import provenance

pytest.importorskip("transformers")


@pytest.fixture
def student(tmp_path):
    """An untrained student of captioned pictures, and the overrides that name its encoder."""
    path = texts.student(tmp_path, texts.bert(tmp_path / "bert"))
    return path, {"data.text_encoder": str(tmp_path / "bert")}


def test_the_page_draws_by_a_typed_prompt_and_says_what_is_wrong(student, tmp_path):
    path, encoder = student
    live = Live(open_checkpoint(str(path), None, encoder), encoder)
    assert live.first.files[0].title in texts.SAID
    one, again = (live.draw({"prompt": "a red heart"}, seed=3, n=2) for _ in range(2))
    other = live.draw({"prompt": "a large blue square"}, seed=3, n=2)
    assert one.files[0].data == again.files[0].data != other.files[0].data
    assert [file.title for file in one.files] == ["a red heart"] * 2
    (tmp_path / one.files[0].name).write_bytes(one.files[0].data)
    assert provenance.read(tmp_path / one.files[0].name)["prompt"] == "a red heart"
    with pytest.raises(UserError, match="more than the 16"):
        live.draw({"prompt": "red " * 20})
    page = pytest.importorskip("scm_core.apps.page.page", exc_type=ImportError)
    (box,) = page.controls(live.student.condition).values()
    assert box.get_block_name() == "textbox" and "held-out captions" in box.placeholder
    assert page.asked(live.student.condition, ("a red heart",)) == {"prompt": "a red heart"}


def test_a_request_to_the_server_is_checked_without_encoding(student, monkeypatch):
    http = pytest.importorskip("scm_core.apps.serving.http", exc_type=ImportError)
    from modalities.common.text import Alone

    path, encoder = student
    field = open_checkpoint(str(path), None, encoder).condition["prompt"]
    monkeypatch.setattr(Alone, "encode", None)
    asked = TypeAdapter(http.condition_type(field))
    for given in ("a red heart", ["a red heart", "a star"], None):
        assert asked.validate_python(given) == given
    with pytest.raises(ValidationError, match="more than the 16"):
        asked.validate_python("red " * 20)
    with pytest.raises(ValidationError, match="300 prompts are more than 256"):
        asked.validate_python(["a star"] * 300)
    assert {"type": "string", "minLength": 1} in asked.json_schema()["anyOf"]


def test_another_encoder_is_refused_when_the_model_is_opened(student, tmp_path):
    path, _ = student
    other = texts.bert(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="another text encoder"):
        open_checkpoint(str(path), None, {"data.text_encoder": str(other)})


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs a browser: apt-get install chromium chromium-driver",
)
def test_type_a_prompt_and_see_a_picture(student):
    pytest.importorskip("gradio")
    pytest.importorskip("selenium")
    from page import opened

    path, encoder = student
    with opened(
        f"checkpoint={path}", *(f"{key}={value}" for key, value in encoder.items())
    ) as page:
        page.type("prompt", "a red heart")
        first = page.source()
        page.type("prompt", "a large blue square")
        assert first.startswith("data:image/png") and page.source() != first
        page.type("prompt", "red " * 20, said="more than the 16")
