"""The scaffold: what it writes works as written, and what it refuses it refuses in a sentence."""

import subprocess
import sys

import pytest
from environment import PIP, Environment

from scm_core.apps.scaffold import new_modality
from scm_core.base import console


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder; what it says, or with `code=2` its one error line."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["new_modality", *words])
        with pytest.raises(SystemExit) as caught:
            console.run(new_modality.main, new_modality.__doc__)
        said = capsys.readouterr()
        assert caught.value.code == code, said
        if code:
            assert said.err.startswith("error: ") and said.err.count("\n") == 1
        return said.err if code else said.out

    return run


@pytest.mark.slow  # more than a minute, most of it an environment of its own
def test_from_an_empty_folder_to_samples(run, tmp_path):
    """The commands that the scaffold prints, in an environment of their own, and its tests."""
    said = run("spectra")
    environment = Environment(tmp_path / "environment")
    commands = [line.split() for line in said.splitlines()[1:]]
    assert commands[0] == ["pip", "install", "-e", "spectra"]
    environment.run(*PIP, "-e", "spectra", cwd=tmp_path)
    checked, trained, sampled = (environment.run(*c[1:], cwd=tmp_path) for c in commands[1:])
    assert checked.count("\nok ") == 15 and "FAILED" not in checked
    assert "student: 20 steps" in trained
    assert "64 samples" in sampled and len(list((tmp_path / "samples").glob("*.txt"))) == 64
    assert "1 passed" in environment.run("-m", "pytest", "-q", cwd=tmp_path / "spectra")


def test_it_is_small_and_clean(run, tmp_path):
    run("my_waves2")
    files = [path for path in (tmp_path / "my_waves2").rglob("*") if path.is_file()]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 150
    assert not any("newname" in f"{path} {path.read_text()}" for path in files)
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=100"]
    subprocess.run([*ruff, tmp_path / "my_waves2"], check=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "give one word"),
        (("a", "b"), "give one word"),
        (("2waves",), "cannot be a package's name"),
        (("my-waves",), "cannot be a package's name"),
        (("../waves",), "cannot be a package's name"),
        (("waves_",), "cannot be a package's name"),
        (("été",), "cannot be a package's name"),
        (("class",), "cannot be a package's name"),
        (("Waves",), "cannot be a package's name"),
        (("image",), "a modality called image is installed already"),
        (("torch",), "a package called torch is installed already"),
    ],
)
def test_a_name_that_will_not_do(run, words, sentence, tmp_path):
    assert sentence in run(*words, code=2)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(run, tmp_path):
    run("spectra")
    assert "spectra exists already" in run("spectra", code=2)
