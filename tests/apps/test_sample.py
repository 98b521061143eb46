"""A folder of samples: what the command says of those that were there before."""

import pytest
import toy_plugin
from PIL import Image

from scm_core.apps import sample
from scm_core.data import provenance


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "student.safetensors"
    toy_plugin.write_student(path)
    return path


def test_samples_of_an_earlier_draw_are_named(toy, tmp_path, capsys):
    words = ["modality=toy_plugin:SPEC", f"checkpoint={toy}", f"out={tmp_path}"]
    sample.main([*words, "n=6"])
    for name in ("00001.wav", "00001.txt", "notes.txt", "2024.png"):
        (tmp_path / name).write_text("before")
    sample.main([*words, "n=6", "seed=1"])
    assert "drawn before: 2 files, 00001.txt to 00001.wav" in capsys.readouterr().out
    (tmp_path / "00001.wav").unlink()
    (tmp_path / "00001.txt").unlink()
    sample.main([*words, "n=2"])
    said = capsys.readouterr().out
    assert f"{tmp_path} still has samples that were drawn before: 4 files, 00002.png to" in said
    assert len(list(tmp_path.iterdir())) == 9  # nothing was removed
    sample.main([*words, "n=6"])
    assert "before" not in capsys.readouterr().out


def test_where_a_students_sampler_looks_last_is_asked_of_the_command(toy, tmp_path):
    """Of two steps and of no fewer; the samples say so."""
    words = ["modality=toy_plugin:SPEC", f"checkpoint={toy}", "n=2"]
    drawn = {}
    for steps in (1, 2):
        for last in (1.1, 0.4):
            out = tmp_path / f"{steps}-{last}"
            sample.main([*words, f"steps={steps}", f"student.last_time={last}", f"out={out}"])
            assert provenance.read(out / "overview.png")["last_time"] == last
            drawn[steps, last] = Image.open(out / "overview.png").tobytes()
    sample.main([*words, "steps=2", f"out={tmp_path / 'default'}"])
    assert Image.open(tmp_path / "default" / "overview.png").tobytes() == drawn[2, 1.1]
    assert drawn[1, 1.1] == drawn[1, 0.4] and drawn[2, 1.1] != drawn[2, 0.4]


@pytest.mark.parametrize("last", [0, -1, 1.57, "nan"])
def test_data_and_noise_are_no_time_to_look(refused, toy, tmp_path, last):
    words = ["modality=toy_plugin:SPEC", f"checkpoint={toy}", f"out={tmp_path}"]
    said = refused("sample", *words, f"student.last_time={last}")
    assert "must be above 0 and at most 1.5" in said
    said = refused("train", "modality=image", "preset=smoke", f"student.last_time={last}")
    assert "must be above 0 and at most 1.5" in said


@pytest.mark.parametrize("guidance", ["nan", "inf", "-1"])
def test_guidance_is_a_number_from_0_on(refused, toy, tmp_path, guidance):
    words = ["modality=toy_plugin:SPEC", f"checkpoint={toy}", f"out={tmp_path}"]
    assert "is no number from 0 on" in refused("sample", *words, f"guidance={guidance}")


def test_where_nothing_can_be_written_is_found_before_anything_is_drawn(refused, toy, tmp_path):
    (tmp_path / "file").touch()
    said = refused(
        "sample", f"checkpoint={toy}", "modality=toy_plugin:SPEC", f"out={tmp_path}/file"
    )
    assert "is no folder that may be written to" in said
