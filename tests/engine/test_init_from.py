"""A student that begins with the weights of another one."""

import shutil

import pytest
from hostile import SHIPPED
from safetensors import safe_open
from safetensors.torch import load_file

from scm_core.base.files import fingerprint
from scm_core.engine import run

TOY = ["modality=toy_plugin:SPEC", "preset=cpu", "trainer.accelerator=cpu", "max_steps=8"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run with a teacher and its student."""
    out = tmp_path_factory.mktemp("run") / "first"
    run.main([*TOY, f"out={out}", "student.lr=0.1", "student.lr_warmup=0"])
    return out


@pytest.fixture
def second(first, tmp_path):
    """A folder with the same teacher, and how a student is trained in it."""
    out = tmp_path / "second"
    out.mkdir()
    shutil.copy(first / "teacher.safetensors", out)
    return out, [*TOY, "stage=student", f"out={out}", "student.lr=1e-8"]


def apart(one, other):
    """The largest difference between the weights of two files."""
    one, other = (load_file(path) for path in (one, other))
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)


def test_it_begins_with_their_weights_and_says_so_without_a_path(first, second):
    out, words = second
    run.main([*words, f"student.init_from={first}/student.safetensors"])
    made = out / "student.safetensors"
    assert apart(made, first / "teacher.safetensors") > 0.01
    assert apart(made, first / "student.safetensors") < 1e-4
    with safe_open(made, "pt") as file:
        described = file.metadata()
    began = fingerprint(load_file(first / "student.safetensors"))
    assert described["init_from"] == f'"{began}"' and str(first) not in str(described)


def test_a_student_that_has_begun_keeps_its_beginning(first, second, tmp_path, refused):
    out, words = second
    weights = tmp_path / "weights.safetensors"
    shutil.copy(first / "student.safetensors", weights)
    began = [*words, f"student.init_from={weights}"]
    run.main(began)
    weights.unlink()  # nothing is asked of it any more
    run.main([*began, "max_steps=9"])
    with safe_open(out / "student.safetensors", "pt") as file:
        described = file.metadata()
    fresh = fingerprint(load_file(first / "student.safetensors"))
    assert described["init_from"] == f'"{fresh}"' and described["step"] == "9"
    assert "another student.init_from" in refused("train", *words, "max_steps=10")


@pytest.mark.parametrize("begun", [True, False])
def test_a_student_keeps_the_guidance_it_was_asked_for(first, tmp_path, refused, begun):
    out = tmp_path / "copy"
    shutil.copytree(first, out)
    (out / ("student.safetensors" if begun else "config.yaml")).unlink()
    said = refused("train", *TOY, f"out={out}", "student.guidance=2")
    assert "another student.guidance (1.5, now 2.0): choose another out=" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["student.init_from=/no/file.safetensors"], "is no file"),
        (["student.init_from={first}/config.yaml"], "is not a readable safetensors file"),
        (["student.init_from={out}/student.safetensors"], "choose another out="),
        (["student.init_from={other}"], "is a student of image"),
        (["student.init_from={first}/teacher.safetensors"], "is a teacher of toy_plugin"),
        (["student.init_from={first}/student.safetensors", "student.lora.rank=2"], "lora.rank"),
    ],
)
def test_what_it_cannot_begin_with(first, second, refused, words, said):
    out, before = second
    shutil.copy(first / "student.safetensors", out)
    places = {"first": first, "out": out, "other": SHIPPED}
    assert said in refused("train", *before, *(word.format(**places) for word in words))


def test_another_network_is_refused(first, tmp_path, refused):
    words = [*TOY, f"out={tmp_path}/wide", "backbone.options.width=64"]
    words += [f"student.init_from={first}/student.safetensors"]
    assert "holds another backbone" in refused("train", *words)
