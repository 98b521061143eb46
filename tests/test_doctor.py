"""What `python -m scm_core.doctor` finds, and what it says is missing."""

import subprocess
import sys

from packaging.requirements import Requirement

from scm_core import doctor, modality
from scm_core.errors import UserError


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

    spec = modality.get("image")
    monkeypatch.setitem(spec.__dict__, "find_data", nowhere)
    data = findings(doctor.plugin("image"))["data"]
    assert (data.ok, data.said) == (False, "put them there")


def test_a_broken_plugin_is_a_finding():
    found = findings(doctor.plugin("no_such_module:SPEC"))
    assert not found["loads"].ok and "no_such_module" in found["loads"].said
