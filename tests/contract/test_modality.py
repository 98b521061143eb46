"""The plugin contract: how modalities are found, and what happens when one is broken."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from strangers import install

from modalities.image import SPEC
from scm_core import UserError
from scm_core.contract import spec

ROOT = Path(__file__).parents[2]


def printed(code):
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.strip()


def test_the_core_imports_no_modality():
    """Import every module of the core in a fresh process and look what came along."""
    code = (
        "import pkgutil, sys, importlib, scm_core\n"
        "for m in pkgutil.walk_packages(scm_core.__path__, 'scm_core.'):\n"
        "    importlib.import_module(m.name)\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'modalities'])\n"
    )
    assert printed(code) == "[]"


def test_what_draws_starts_without_what_only_trains():
    """Lightning, torchvision and torch's compiler take longer to import than two steps to draw."""
    code = (
        "import sys\nfrom scm_core.apps import sample\n"
        "from scm_core.contract import spec\nfrom scm_core.engine import checkpoint\n"
        "for name in ('image', 'video'):\n"
        "    checkpoint.load(spec.get(name).checkpoints / 'student.safetensors')\n"
        "spec.get('audio')\n"
        "late = {'lightning', 'torchvision', 'torchmetrics', 'matplotlib', 'torch._dynamo'}\n"
        "print([name for name in late if name in sys.modules])"
    )
    assert printed(code) == "[]"


def test_no_source_file_of_the_core_names_a_modality_package():
    for path in (ROOT / "scm_core").rglob("*.py"):
        text = path.read_text()
        assert "import modalities" not in text and "from modalities" not in text, path


def test_built_in_by_name_and_by_place():
    assert spec.get("image") is SPEC
    assert spec.get("modalities.image:SPEC") is SPEC


def test_a_plugin_of_another_package(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text(
        "from dataclasses import replace\nfrom modalities.image import SPEC\n"
        "SPEC = replace(SPEC, name='spectra')\n"
    )
    install(tmp_path, "spectra", "stranger:SPEC", monkeypatch)
    assert spec.get("spectra").name == "spectra"


def test_a_misspelt_name_is_corrected():
    with pytest.raises(UserError, match="did you mean image"):
        spec.get("imgae")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_package.part", "needs the package no_such_package: pip install no_such_p"),
        ("import stranger_broken.typo", "is broken: ModuleNotFoundError"),
        ("raise SystemExit", "is broken: SystemExit"),
        ("raise RuntimeError('out of luck')", "is broken: RuntimeError: out of luck"),
        ("SPEC = 3", "is not a ModalitySpec"),
        ("OTHER = 3", "is broken: AttributeError"),
    ],
)
def test_a_broken_plugin_gives_one_sentence(tmp_path, monkeypatch, source, words):
    (tmp_path / "stranger_broken.py").write_text(source)
    monkeypatch.delitem(sys.modules, "stranger_broken", raising=False)
    install(tmp_path, "odd", "stranger_broken:SPEC", monkeypatch)
    with pytest.raises(UserError, match=words) as caught:
        spec.get("odd")
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named_with_its_command(tmp_path, monkeypatch):
    (tmp_path / "stranger_extra.py").write_text("import no_such_package")
    install(tmp_path, "odd", "stranger_extra:SPEC", monkeypatch, extra="odd")
    with pytest.raises(UserError, match=r"no_such_package: pip install 'stranger\[odd\]'"):
        spec.get("odd")


def test_two_plugins_of_one_name(tmp_path, monkeypatch):
    install(tmp_path / "a", "twin", "first:SPEC", monkeypatch, "first")
    install(tmp_path / "b", "twin", "second:SPEC", monkeypatch, "second")
    with pytest.raises(UserError, match="first:SPEC and second:SPEC"):
        spec.get("twin")


def test_another_contract_version_is_refused(tmp_path, monkeypatch):
    (tmp_path / "futurist.py").write_text(
        "from dataclasses import replace\nfrom modalities.image import SPEC\n"
        "SPEC = replace(SPEC, api_version=99)\n"
    )
    install(tmp_path, "future", "futurist:SPEC", monkeypatch, "futurist")
    with pytest.raises(UserError, match="version 99"):
        spec.get("future")


def test_a_spec_is_frozen():
    with pytest.raises(AttributeError):
        SPEC.name = "other"
    assert replace(SPEC, name="other").name == "other"
