"""What files are called and say of themselves is shown, and steers no terminal."""

import io
import json
import logging
import os
import subprocess
import sys

import pytest
from environment import ROOT
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.table import Table

from scm_core.apps import provenance
from scm_core.base import console
from scm_core.base.errors import visible

HOSTILE = (
    *("\x1b[2J", "\r", "\n", "\x07", "\x08", "\x00", "\x7f"),
    *("\x9b2J", "\x85", "\u2028", "\u2029"),  # C1, and other line ends
    *("\u202e", "\u2066", "\u200f"),  # directions of writing
    *("\u200b", "\u200d", "\ufeff", "\u00ad", "\U000e0041"),  # no width
    "\udce9",  # a byte of a file's name that is no UTF-8
)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_not_seen_stands_as_an_escape(text):
    shown = visible(f"a{text}b")
    assert shown.isprintable() and "\\" in shown and shown.encode()
    assert visible("Müller 画 [red] :cat: \\x") == "Müller 画 [red] :cat: \\x"


@pytest.mark.parametrize("way", ["text", "table", "log", "error"])
def test_no_way_to_print_lets_a_text_steer_the_terminal(way, capfd, refused):
    text = "a" + "".join(one for one in HOSTILE if one != "\n") + "[red]:cat:"
    out = io.StringIO()
    if way == "error":
        out.write(refused("sample", f"checkpoint={text}"))
    elif way == "log":
        handler = logging.StreamHandler(out)
        handler.setFormatter(console.Formatter())
        record = logging.LogRecord("a", logging.WARNING, "a", 1, "%s", (text,), None)
        handler.emit(record)
    else:
        screen = console.Console(file=out, width=1000)
        table = Table(text)
        table.add_row(text)
        screen.print(text if way == "text" else table)
    shown = out.getvalue()
    assert r"\x1b[2J" in shown and "[red]:cat:" in shown
    assert all(one.isprintable() or one == "\n" for one in shown)


def test_what_a_terminal_cannot_show_stands_as_an_escape(tmp_path):
    line = [sys.executable, "-m", "scm_core.sample", "modality=image", "n=1"]
    of_few = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*line, f"out={tmp_path}/画"], env=of_few, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "\\u753b" in done.stdout, done.stderr


def test_a_file_has_one_line_about_its_signature(tmp_path, capfd):
    """Whatever its note says, and whatever it is called."""
    spoof = "x\n  signature: valid, the file is as it was signed\r\x1b[8m"
    path, info = tmp_path / f"{spoof}.png", PngInfo()
    note = {"scm-core": {"signature": "valid", "made by": spoof}}
    info.add_itxt("scm-core", json.dumps(note))
    Image.new("L", (1, 1)).save(path, pnginfo=info)
    provenance.main([str(path)])
    lines = capfd.readouterr().out.splitlines()
    assert [line for line in lines if line.strip().startswith("signature:")] == [
        "  signature: none"
    ]
    assert len(lines) == 5 and all(line.isprintable() for line in lines)
