"""The example plugins: installed as packages of their own, their tests run, trained and sampled."""

import os
import shutil
import subprocess
import sys

import pytest
from environment import ROOT, install
from safetensors import safe_open

from scm_core.apps import sample
from scm_core.engine import run

PHASES = "student.phases=[{endpoint: 1, steps: 2}, {consistency: 1, steps: 2}]"
SHORT = ["preset=cpu", "max_steps=4", PHASES, "student.options.consistency.tangent_warmup=1"]
EXAMPLES = {
    "neuron": (["data.batch_size=16"], ["firing=irregular"]),
    "glyphs": (["data.batch_size=16", "data.draws=1"], ["letter=[A,Z]"]),
}


@pytest.fixture(params=EXAMPLES)
def example(request, tmp_path, monkeypatch):
    """The name of an example that is installed and can be imported; the folder is an empty one."""
    copy = shutil.copytree(ROOT / "examples" / request.param, tmp_path / "source")
    install(copy, tmp_path / "installed")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    monkeypatch.chdir(tmp_path)
    return request.param


def test_an_example_conforms_trains_and_draws(example, tmp_path):
    variables = {**os.environ, "PYTHONPATH": f"{tmp_path / 'installed'}:{ROOT}"}
    command = [sys.executable, "-m", "pytest", "-q", tmp_path / "source"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    words, condition = EXAMPLES[example]
    run.main([f"modality={example}", *SHORT, *words])
    weights = tmp_path / "runs" / f"{example}-cpu" / "student.safetensors"
    with safe_open(weights, "pt") as file:
        assert file.metadata()["step"] == "4"
    sample.main([f"modality={example}", "n=4", *condition])
    assert len(list((tmp_path / "samples").glob("0*.csv"))) == 4
    assert (tmp_path / "samples" / "overview.png").exists()
