"""A folder of samples: what the command says of those that were there before."""

import pytest
import toy_plugin

from scm_core.apps import sample


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
