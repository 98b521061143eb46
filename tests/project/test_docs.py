"""The documentation: it builds without a warning, and its code is the code of the examples."""

import re
import subprocess
import sys

from environment import ROOT

BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page):
    return dict(BLOCK.findall((ROOT / "docs" / page).read_text()))


def test_the_tutorial_shows_the_examples_own_files():
    shown = blocks("tutorial.md")
    for path, code in shown.items():
        assert code == (ROOT / path).read_text(), f"docs/tutorial.md and {path} differ"
    sources = (ROOT / "examples" / "neuron" / "src").rglob("*.py")
    assert {str(path.relative_to(ROOT)) for path in sources} <= set(shown)


def test_the_documentation_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "check_modality" in (tmp_path / "api.html").read_text()
