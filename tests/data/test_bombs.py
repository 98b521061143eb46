"""Files that decode to too much are refused by limits, in bounded memory."""

import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import hostile
import pytest
from PIL import Image
from sounds import NOTES

from scm_core.contract.config import Limits
from scm_core.data import shards
from scm_core.engine import config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    """A folder of files that are small and decode to far too much."""
    folder = tmp_path_factory.mktemp("bombs")
    hostile.png(folder / "wide.picture.png", 50_000, 50_000, 50_000)
    hostile.png(folder / "lying.picture.png", 50_000, 50_000, 10)
    hostile.png(folder / "strip.picture.png", 1_000_000, 1, 1)
    hostile.gif(folder / "canvas.picture.gif", 65_535, 65_535, 3)
    hostile.gif(folder / "canvas.video.gif", 65_535, 65_535, 3)
    hostile.gif(folder / "slow.video.gif", 32, 32, 100, hundredths=65_535)
    with (folder / "hole.picture.webp").open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
        file.truncate(1 << 40)
    hostile.gif(folder / "many.video.gif", 8, 8, 100_000)
    hostile.wav(folder / "day.sound.wav", 8_000, 24 * 3600)
    hostile.wav(folder / "hertz.sound.wav", 1, 4_000)
    hostile.wav(folder / "fast.sound.wav", 2**31 - 1, 1e-5)
    hostile.flac(folder / "silent.sound.flac", 8_000, 24 * 3600, stated=0)
    for suffix in ("mp4", "mkv"):
        hostile.video(folder / f"long.video.{suffix}", [0, 1, 20_000, 20_001])
        hostile.video(folder / f"large.video.{suffix}", [0, 1, 2], 4096, 2160)
    wide = {"channels": [60_000, 1 << 30, 1 << 40]}
    for name, changed in {
        "overflowing": {"backbone__options": {"channels": [60_000, 1 << 19, 1 << 19]}},
        "huge": {"backbone__options": {"channels": [50_000, 50_000]}},
        "wide": {"backbone__options": wide},
        "endless": {"backbone__options": {"blocks": 10**11}},
        "embedded": {"backbone__options": {"embedding": 1 << 20}},
        "spectral": {"mel__n_fft": 1 << 20},
        "filtered": {"mel__n_fft": 1 << 16, "mel__mels": 1 << 14},
        "classes": {"condition": {"label": {"kind": "label", "classes": 10**9}}},
        "vector": {"condition": {"v": {"kind": "vector", "size": 10**9}}},
        "shape": {"shape": [1, 1 << 20, 1 << 20]},
    }.items():
        hostile.model(folder / f"{name}.model.safetensors", **changed)
    return folder


READ = """
import resource, sys
from pathlib import Path
import hostile
from scm_core.contract.config import Limits

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

folder, low = Path(sys.argv[1]), Limits(frames=5_000, pixels=1_000_000, seconds=2500)
for kind, make in (("picture", lambda path: hostile.png(path, 64, 64, 64)),
                   ("sound", lambda path: hostile.wav(path, 8000, 1)),
                   ("video", lambda path: hostile.gif(path, 32, 32, 4))):
    hostile.read(kind, make(folder.parent / kind))  # so that what libraries take is not counted
hostile.read("model", hostile.SHIPPED.parents[1] / "audio" / "student.safetensors")
before = peak()
for limits in (Limits(), low):
    for path in sorted(folder.iterdir()):
        usual = path.name not in ("many.video.gif", "day.sound.wav")
        if ".model." not in path.name if limits is low else usual:
            try:
                said = f"read {tuple(hostile.read(path.name.split('.')[1], path, limits).shape)}"
            except Exception as error:
                said = str(error)
            print(limits is low, path.name, said, sep="|")
print(peak() - before)
"""


@pytest.fixture(scope="module")
def said(bombs):
    """What a process says of each bomb under the usual limits, under low ones, and its growth."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", READ, bombs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, growth = done.stdout.splitlines()
    found = {"False": {}, "True": {}}
    for low, name, sentence in (line.split("|", 2) for line in lines):
        found[low][name] = sentence
    return found["False"], found["True"], int(growth)


def test_bombs_are_refused(said):
    """By the limits that everybody has, unless asked otherwise."""
    media = {name: text for name, text in said[0].items() if ".model." not in name}
    found = {name: text for name, text in media.items() if "limits." not in text}
    assert set(found) == {
        "canvas.video.gif",  # refused by FFmpeg's own bounds
        "fast.sound.wav",
        "hertz.sound.wav",
        "large.video.mkv",  # which is no bomb
        "large.video.mp4",
    }
    assert "Invalid" in found["canvas.video.gif"]
    assert all("is no sound's" in found[f"{name}.sound.wav"] for name in ("fast", "hertz"))
    assert all(found[f"large.video.{kind}"].startswith("read") for kind in ("mkv", "mp4"))


def test_a_model_s_numbers_are_bound_by_its_weights(said):
    """In two kilobytes, which is before any of it is built."""
    found = {name: text for name, text in said[0].items() if ".model." in name}
    assert len(found) == 10
    for name, text in found.items():
        assert "too large" in text or "larger model than its weights" in text, (name, text)


def test_lower_limits_refuse_more(said):
    assert "limits.frames=5000" in said[1]["many.video.gif"]
    assert not any(text.startswith("read") for text in said[1].values())


def test_bombs_are_refused_in_little_memory(said):
    """Each is gigabytes when it is decoded; four hours of sound at 8 kHz, the limit, are 460 MB."""
    assert said[2] < 700


def test_lengths_are_measured_where_headers_say_nothing(tmp_path):
    """A stream of AAC states no length, and a WAV may state any."""
    sound = hostile.flac(tmp_path / "a.flac", 8_000, 30)
    assert len(hostile.read("sound", sound, Limits(seconds=31))) == 8_000 * 30
    raw = tmp_path / "a.aac"
    hostile.aac(raw, 8_000, 30)
    with pytest.raises(ValueError, match="seconds are more than limits.seconds=10"):
        hostile.read("sound", raw, Limits(seconds=10))
    short = hostile.wav(tmp_path / "a.wav", 8_000, 1, stated=0x7FFFFFFF)
    assert len(hostile.read("sound", short, Limits())) == 8_000
    with pytest.raises(ValueError, match="bytes are more than limits.bytes=1000"):
        hostile.read("sound", short, Limits(bytes=1000))


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_overstates_costs_no_file(tmp_path, packed):
    """As of a file that was cut, or whose writer was ended; a shard reads as a folder does."""
    hostile.flac(tmp_path / "sound.flac", 8_000, 2, stated=8_000 * 20_000)
    hostile.wav(tmp_path / "sound.wav", 8_000, 2, stated=3_000_000_000)
    for suffix, key, fields in (("avi", b"strh", "<I"), ("mkv", b"\x44\x89", ">d")):
        path = hostile.video(tmp_path / f"video.{suffix}", [0, 1])
        content = bytearray(path.read_bytes())
        place = content.index(key) + (40 if suffix == "avi" else 3)
        struct.pack_into(fields, content, place, 3_000_000_000)
        path.write_bytes(content)
    pack = {path: path for path in tmp_path.iterdir()}
    if packed:
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            for path in pack:
                tar.add(path, path.name)
        pack = {member.path: member for member in shards.read(tmp_path / "all.tar")}
    lengths = {path.name: len(hostile.read(path.stem, file)) for path, file in pack.items()}
    assert lengths == {
        "sound.flac": 16_000,
        "sound.wav": 16_000,
        "video.avi": 8,
        "video.mkv": 8,
    }


def test_hours_pass(tmp_path):
    """An hour of sound is no bomb, nor a film of two hours."""
    sound = hostile.read("sound", hostile.flac(tmp_path / "a.flac", 8_000, 3600))
    assert len(sound) == 8_000 * 3600
    film = hostile.video(tmp_path / "a.mp4", list(range(0, 7200, 30)))
    assert len(hostile.read("video", film)) >= 4 * 7170


def test_what_exceeds_a_limit_is_named_and_skipped(tmp_path, caplog, fashion_root):
    root = tmp_path / "set" / "one"
    root.mkdir(parents=True)
    for i in range(200):
        Image.new("L", (8, 8), i).save(root / f"{i}.png")
    Image.new("L", (40, 40)).save(root / "large.png")
    words = ["modality=image", "data.name=folder", f"data.root={root}", "limits.pixels=100"]
    spec, settings = config.load([*words, "data.channels=1"])
    data = spec.data(settings)
    data.setup()
    assert len(data.train_set) + len(data.test_set) == 200
    assert "large.png: 1600 pixels are more than limits.pixels=100" in caplog.text


def test_limits_reach_sounds_and_videos(tmp_path, monkeypatch, refused):
    shutil.copytree(NOTES, tmp_path / "sounds")
    hostile.video(tmp_path / "video.mp4", list(range(8)))
    for name in ("a", "b"):
        (tmp_path / "videos" / "one").mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "video.mp4", tmp_path / "videos" / "one" / f"{name}.mp4")
    for modality, kind, total in (("audio", "recording", 10), ("video", "video", 2)):
        words = [f"modality={modality}", "data.name=folder", f"data.root={tmp_path}/{modality}"]
        words[-1] = words[-1].replace("audio", "sounds").replace("/video", "/videos")
        said = refused("train", *words, "limits.seconds=0.1", f"out={tmp_path}/run")
        assert f"{total} of {total} {kind}s are broken" in said


def test_an_unpacked_idx_file_is_bounded(refused, tmp_path):
    import gzip

    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
        file.write(bytes([0, 0, 8, 3]) + (100_000).to_bytes(4, "big") + bytes([0, 0, 0, 28] * 2))
        for _ in range(100):
            file.write(bytes(1 << 20))
    said = refused("train", "modality=image", f"data.root={tmp_path}", f"out={tmp_path}/run")
    assert "larger than any file of Fashion-MNIST" in said


def test_a_configuration_that_multiplies_itself(refused, tmp_path):
    """Nine lists of nine, each of the one before: 387 million values in half a kilobyte."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (tmp_path / "preset.yaml").write_text("\n".join(lines))
    assert "aliases" in refused("train", "modality=image", f"preset={tmp_path}/preset.yaml")
