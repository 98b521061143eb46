"""What `python -m scm_core.doctor` finds, and what it says is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from scm_core.apps import doctor
from scm_core.base import console, distributed
from scm_core.base.errors import UserError
from scm_core.contract import spec


def findings(chapter):
    return {finding.thing: finding for finding in chapter}


def test_the_command_names_what_is_there():
    line = [sys.executable, "-m", "scm_core.doctor"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("python", "torch", "CPU", "GiB free", "scm-core[image]", "Modality video"):
        assert word in done.stdout
    assert "Traceback" not in done.stderr


def test_a_missing_package_comes_with_its_command():
    missing = doctor.wanted(Requirement("no-such-package>=2"))
    assert not missing.ok and "pip install 'no-such-package>=2'" in missing.said
    old = doctor.wanted(Requirement("torch<1"))
    assert not old.ok and "is none of <1" in old.said
    assert doctor.wanted(Requirement("torch")).ok


def test_every_requirement_is_of_the_core_or_of_one_extra():
    package = doctor.distribution(doctor.PACKAGE)
    names = {requirement.name for requirement in doctor.required(package, None)}
    of_image = {requirement.name for requirement in doctor.required(package, "image")}
    assert "torch" in names and "efficientnet-lite-pytorch" in of_image
    assert not names & of_image


def test_a_plugin_says_where_its_data_are(monkeypatch):
    found = findings(doctor.plugin("audio"))
    assert found["loads"].ok and found["data"].said.endswith("TimGM6mb.sf2")

    def nowhere(config):
        raise UserError("put them there")

    image = spec.get("image")
    monkeypatch.setitem(image.__dict__, "find_data", nowhere)
    data = findings(doctor.plugin("image"))["data"]
    assert (data.ok, data.said) == (False, "put them there")


def test_a_plugin_without_its_files_is_a_finding(monkeypatch):
    """As one whose package forgot its YAML; the others are still looked at."""
    monkeypatch.setitem(spec.get("image").__dict__, "config_file", Path("nowhere.yaml"))
    found = findings(doctor.plugin("image"))["configuration"]
    assert (found.ok, found.said) == (False, "no file nowhere.yaml")


def test_a_broken_plugin_is_a_finding():
    found = findings(doctor.plugin("no_such_module:SPEC"))
    assert not found["loads"].ok and "no_such_module" in found["loads"].said


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Sixteen processors, and cgroups that a test makes up."""
    monkeypatch.setattr(
        distributed.os, "sched_getaffinity", lambda _: set(range(16)), raising=False
    )
    monkeypatch.setattr(distributed, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(distributed, "OWN_CGROUPS", tmp_path / "own")

    def made(own, files):
        (tmp_path / "own").write_text(own)
        for path, text in files.items():
            (tmp_path / "cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / path).write_text(text)

    return made


V1 = "3:cpuset:/x\n2:cpu,cpuacct:/docker/1\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    "own, files, cpus",
    [
        ("0::/\n", {}, 16),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/job/1\n", {"job/1/cpu.max": "max 100000\n", "job/cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "3200000 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "nonsense"}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        (V1, {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        (
            V1,
            {
                "cpu/docker/1/cpu.cfs_quota_us": "500000\n",
                "cpu/docker/1/cpu.cfs_period_us": "100000\n",
                "cpuset/x/cpu.max": "100000 100000\n",
            },
            5,
        ),
        ("", {}, 16),
    ],
)
def test_threads_are_as_many_as_the_cgroups_leave(machine, own, files, cpus):
    machine(own, files)
    assert distributed.cpus() == cpus


def test_threads_are_as_many_as_the_affinity_mask_leaves(machine, monkeypatch):
    machine("0::/\n", {"cpu.max": "800000 100000\n"})
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda _: {0, 5, 7})
    assert distributed.cpus() == 3


@pytest.mark.parametrize("wish, threads", [(None, 2), ("6", 6)])
def test_every_command_limits_its_threads_unless_they_are_given(
    machine, monkeypatch, wish, threads
):
    machine("0::/\n", {"cpu.max": "200000 100000\n"})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wish:
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
    monkeypatch.setattr(sys, "argv", ["doctor"])
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(6)
    try:
        with pytest.raises(SystemExit):
            console.run(lambda _: seen.extend(doctor.devices()), "")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert f"2 of them for this process, {threads} threads" in findings(seen)["CPU"].said
    assert ("(OMP_NUM_THREADS)" in findings(seen)["CPU"].said) == bool(wish)
