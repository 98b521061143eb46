"""A package of somebody else that brings a modality, a condition field and an objective."""

import os
import re
import shutil
import subprocess
import sys

from environment import ROOT, install

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "outside"
version = "1.0"

[project.entry-points."scm_core.modalities"]
prompts = "prompts_plugin:SPEC"

[project.entry-points."scm_core.objectives"]
denoise = "denoise:Denoise"

[tool.setuptools]
py-modules = ["prompts_plugin", "pairs_plugin", "denoise"]
"""


def test_it_trains_by_its_objective_and_samples_by_its_field(tmp_path):
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for module in ("prompts_plugin", "pairs_plugin"):
        shutil.copy(ROOT / "tests" / f"{module}.py", source)
    page = (ROOT / "docs" / "objectives.md").read_text()
    (code,) = re.findall(r'```python title="denoise.py"\n(.*?)```', page, re.S)
    (source / "denoise.py").write_text(code)
    (source / "pyproject.toml").write_text(PROJECT)
    install(source, installed)
    shutil.copytree(ROOT / "tests" / "assets", installed / "assets")

    def command(name, *overrides):
        variables = {**os.environ, "PYTHONPATH": f"{installed}:{ROOT}"}
        words = [sys.executable, "-m", f"scm_core.{name}", *overrides]
        done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    phases = "student.phases=[{denoise: 1, steps: 2}]"
    said = command("train", "modality=prompts", "teacher.max_steps=2", phases, "out=run")
    assert "student: 2 steps" in said
    drawn = ("checkpoint=run/student.safetensors", "condition.prompt=late rising", "n=2")
    command("sample", *drawn, "out=drawn")
    note = command("provenance", "drawn/00001.png")
    assert '"prompt": "late rising"' in note
