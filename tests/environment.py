"""Environments into which a test installs packages, offline and without touching its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]


class Environment:
    """A virtual environment that sees the packages of this one, and has a place of its own."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        seen = [str(ROOT), *(path for path in sys.path if path.endswith("-packages"))]
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "seen.pth").write_text("\n".join(seen))

    def run(self, *words: str, cwd: Path) -> str:
        """What `python words` prints; it has to succeed."""
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        variables.pop("PYTHONPATH", None)
        done = subprocess.run(
            [self.python, *words], cwd=cwd, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def install(package: Path, target: Path) -> None:
    """Install a package that needs no compiler into a folder that can go onto `sys.path`."""
    command = [sys.executable, *PIP, "--target", target, package]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
