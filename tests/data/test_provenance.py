"""Files say how they were made, in each format, and to whoever asks."""

import subprocess
import sys
import wave
from pathlib import Path

import av
import pytest
import torch

from scm_core.base.errors import UserError
from scm_core.data import provenance
from scm_core.data.media import write_gif, write_png, write_sound, write_video

FACTS = {"model": "toy student, step 7", "seed": 3, "label": "Stiefeletten, größer", "pose": [0.5]}
CLIP = torch.randint(0, 256, (3, 4, 16, 16), dtype=torch.uint8)
SOUND = torch.linspace(-0.5, 0.5, 2000)
WRITE = {
    ".png": lambda path: write_png(CLIP[:, 0].permute(1, 2, 0), path),
    ".gif": lambda path: write_gif(CLIP, path, 8),
    ".wav": lambda path: write_sound(SOUND, path, 22050),
    ".flac": lambda path: write_sound(SOUND, path, 22050),
    ".mp4": lambda path: write_video(CLIP, path, 8),
}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("suffix", WRITE)
def test_every_format_says_how_it_was_made(tmp_path, suffix):
    with provenance.stating(FACTS):
        said = WRITE[suffix](tmp_path / f"said{suffix}")
    silent = WRITE[suffix](tmp_path / f"silent{suffix}")
    assert provenance.read(said) == FACTS
    with pytest.raises(UserError, match="does not say how it was made"):
        provenance.read(silent)


def test_a_wav_that_says_something_has_the_same_sound(tmp_path):
    with provenance.stating(FACTS):
        said = WRITE[".wav"](tmp_path / "said.wav")
    silent = WRITE[".wav"](tmp_path / "silent.wav")
    sounds = []
    for path in (said, silent):
        with wave.open(str(path)) as sound:
            sounds.append(sound.readframes(sound.getnframes()))
        with av.open(str(path)) as container:
            assert sum(frame.samples for frame in container.decode(audio=0)) == 2000
    assert sounds[0] == sounds[1]
    size = int.from_bytes(said.read_bytes()[4:8], "little")
    assert size == said.stat().st_size - 8


@pytest.mark.parametrize("name", ["none.png", "none.wav", "text.png", "text.wav", "text.mp4"])
def test_what_cannot_be_read_is_one_sentence(tmp_path, name):
    if name.startswith("text"):
        (tmp_path / name).write_text("not a picture, nor a sound")
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        provenance.read(tmp_path / name)


def command(name, *words):
    line = [sys.executable, "-m", f"scm_core.{name}", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True)


def test_samples_say_which_model_drew_them_and_from_what(tmp_path):
    words = ["modality=image", "label=[coat,bag]", "n=2", "seed=5", f"out={tmp_path}"]
    assert command("sample", *words).returncode == 0
    facts = [provenance.read(tmp_path / f"{i:05d}.png") for i in range(2)]
    assert [fact["label"] for fact in facts] == ["coat", "bag"]
    assert facts[0] | {"label": "bag", "sample": 1} == facts[1]
    assert (facts[0]["steps"], facts[0]["seed"]) == (2, 5)
    sha256 = subprocess.run(
        ["sha256sum", ROOT / "checkpoints" / "image" / "student.safetensors"],
        capture_output=True,
        text=True,
    ).stdout.split()[0]
    assert facts[0]["checkpoint sha256"] == sha256
    done = command("provenance", tmp_path / "overview.png", tmp_path / "00001.png")
    assert done.returncode == 0 and '"label": "bag"' in done.stdout
    done = command("provenance", ROOT / "docs" / "images" / "quality_time.png")
    assert done.returncode == 2
