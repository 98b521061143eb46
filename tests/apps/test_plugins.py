"""The listing of plugins and the description of one, with strangers among them."""

import sys

import pytest
from strangers import install

from scm_core.apps import plugins
from scm_core.base import console
from scm_core.base.errors import UserError
from scm_core.contract.spec import API_VERSION
from scm_core.engine import config

GOOD = """
from dataclasses import replace
from modalities.image import SPEC
SPEC = replace(SPEC, name="good")
"""


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    """One good plugin, one that breaks, two of one name; what is imported is marked in a file."""
    marks = tmp_path / "imported"
    for name, source in (("good", GOOD), ("broken", "raise RuntimeError('out of luck')")):
        module = f"stranger_{name}"
        monkeypatch.delitem(sys.modules, module, raising=False)
        code = (
            f"from pathlib import Path\nPath({str(marks)!r}).open('a').write('{name} ')\n{source}"
        )
        (tmp_path / f"{module}.py").write_text(code)
        install(tmp_path, name, f"{module}:SPEC", monkeypatch, module)
    for name in ("first", "second"):
        install(tmp_path / name, "twin", f"{name}:SPEC", monkeypatch, name)
    return marks


@pytest.fixture
def run(monkeypatch, capsys):
    """What the command says; the exit code has to be `code`."""

    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["plugins", *words])
        monkeypatch.setattr(console.console, "width", 200)
        with pytest.raises(SystemExit) as caught:
            console.run(plugins.main, plugins.__doc__)
        said = capsys.readouterr()
        assert caught.value.code == code, said
        return said.out if code == 0 else said.err

    return run


def test_the_listing_shows_good_broken_and_duplicate_plugins(strangers, run):
    rows = {(plugin.name, plugin.package): plugin for plugin in plugins.listing()}
    good = rows["good", "stranger_good"]
    assert (good.version, good.api_version, good.state) == ("1.0", API_VERSION, "ok")
    broken = rows["broken", "stranger_broken"]
    assert broken.api_version is None and broken.state.endswith("RuntimeError: out of luck")
    for package in ("first", "second"):
        assert "first:SPEC and second:SPEC" in rows["twin", package].state
    assert rows["image", "scm-core"].state == "ok"
    said = run()
    assert "out of luck" in said and "first:SPEC and second:SPEC" in said


def test_only_the_named_plugin_is_imported(strangers, fashion_root, run):
    said = run("good", f"data.root={fashion_root}", "data.size=16")
    assert strangers.read_text() == "good "
    assert "A sample x is float32 (B, 1, 16, 16), preset smoke." in said
    assert "Condition label: int64 (B,), Label(classes=10, names=('t-shirt'" in said


def test_asking_for_no_modality_names_all_and_imports_none(strangers):
    with pytest.raises(UserError, match="broken, good, image, twin, twin"):
        config.load([])
    assert not strangers.exists()


def test_a_description_has_keys_types_defaults_and_comments(tmp_path, monkeypatch, run):
    (tmp_path / "config.yaml").write_text(
        "data:\n  size: 24  # pixels a side\nbackbone: {patch: 1}\n"
    )
    (tmp_path / "commented.py").write_text(
        "from dataclasses import replace\nfrom pathlib import Path\n"
        "from modalities.image import SPEC\n"
        "SPEC = replace(SPEC, config_file=Path(__file__).with_name('config.yaml'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    said = run("commented:SPEC", "data.root=/nowhere")
    lines = [line.strip().split(maxsplit=3) for line in said.splitlines()]
    assert ["data.flip", "bool", "False"] in lines
    assert any(line[:1] == ["data.size"] and line[-1].endswith("pixels a side") for line in lines)
    assert ["teacher.lr", "float", "0.001"] in lines
    assert "Which images to train on, and how they are fed." in said
    assert "there are none" in said and "/nowhere" in said


def test_a_plugin_that_cannot_be_loaded_is_one_sentence(strangers, run):
    assert run("broken", code=2).endswith("out of luck\n")
    assert run("imgae", code=2) == "error: no modality is called imgae; did you mean image?\n"
