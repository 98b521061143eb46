"""What a wheel installs."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from environment import ROOT

LEFT_OUT = shutil.ignore_patterns(".*", "build", "data", "dist", "runs", "site", "*.egg-info")


@pytest.mark.slow
def test_a_wheel_has_no_other_top_and_carries_presets_and_checkpoints_inside(tmp_path):
    source = shutil.copytree(ROOT, tmp_path / "source", symlinks=True, ignore=LEFT_OUT)
    words = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [sys.executable, *words, "-w", tmp_path, source], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"modalities", "scm_core"}
    for modality in ("audio", "image", "video"):
        for folder, top in (("presets", "configs"), ("checkpoints", "checkpoints")):
            files = {path.name for path in (ROOT / top / modality).iterdir()}
            packed = {name for name in names if name.startswith(f"modalities/{modality}/{folder}/")}
            kept = {f"modalities/{modality}/{folder}/{file}" for file in files}
            assert packed == {name for name in kept if not name.endswith(".png")}
