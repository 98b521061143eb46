"""The check of a GPU, small and without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_check_of_a_gpu_runs_small_without_one(fashion_root, tmp_path):
    command = [sys.executable, "benchmarks/gpu_check.py", "--data", fashion_root]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "check.json")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "check.json").read_text())["results"]
    said = {result["name"]: result for result in results}
    assert not any(result["ok"] is False for result in results)
    assert said["resumed after kill -9"]["figure"].endswith("to 20")
    for name in ("tangent of a unet, float32", "FSDP2, one process"):
        assert said[name]["ok"] is True
    assert any(name.startswith("transformer tiny, compiled: sCT") for name in said)
