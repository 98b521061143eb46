"""The one command in front of all others."""

import subprocess
import sys

import pytest
from environment import ROOT

from scm_core import __main__ as scm


def said(monkeypatch, capsys, *arguments, code=0):
    monkeypatch.setattr(sys, "argv", ["scm", *arguments])
    if code is None:
        scm.main()
    else:
        with pytest.raises(SystemExit) as caught:
            scm.main()
        assert caught.value.code == code
    return capsys.readouterr()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_every_command_is_listed_on_a_line(monkeypatch, capsys, arguments):
    lines = said(monkeypatch, capsys, *arguments, code=None).out.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines[2:])
    assert listed["train"] == "Train a two-step generator"
    files = {path.stem for path in (ROOT / "scm_core").glob("*.py")}
    assert set(listed) == files - {"__init__", "__main__"}


def test_an_unknown_command_names_the_nearest(monkeypatch, capsys):
    error = said(monkeypatch, capsys, "tarin", code=2).err
    assert error == "error: no command tarin; did you mean train?\n"
    assert "\x1b" not in said(monkeypatch, capsys, "\x1b[2J", code=2).err


def test_a_command_gets_its_arguments(monkeypatch, capsys):
    """Its help, and its errors, which are of its own exit code."""
    assert "Keys (key=value" in said(monkeypatch, capsys, "train", "--help").out
    refused = said(monkeypatch, capsys, "train", "modality=nothing", code=2).err
    assert "no modality is called nothing" in refused


def test_plugins_of_the_working_directory_are_found(monkeypatch, capsys, tmp_path):
    """As with python -m, though the command itself lies elsewhere."""
    (tmp_path / "lying_here.py").write_text("SPEC = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    error = said(monkeypatch, capsys, "plugins", "lying_here:SPEC", code=2).err
    assert "lying_here:SPEC is not a ModalitySpec" in error


def test_the_package_itself_is_the_command():
    line = [sys.executable, "-m", "scm_core", "sample", "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Draw samples from a trained model")
