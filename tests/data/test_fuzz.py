"""Random words, configurations and files: a sentence or success, and never anything else.

Media are read in a process of its own, which is fed one path after the other and killed when it
does not answer: a crash or a hang of a native decoder is a failed test with the file kept.
"""

import os
import random
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sounds import encode, tone

from modalities.audio.notes import find_font
from scm_core.apps import sample
from scm_core.base.errors import UserError
from scm_core.engine import checkpoint, config

ROOT = Path(__file__).parents[2]
MEMORY = 1500  # MiB that the process may grow by over all files

SOUNDS = {
    **{"wav": "pcm_s16le", "flac": "flac", "ogg": "libopus", "oga": "libopus", "aac": "aac"},
    **{
        "opus": "libopus",
        "mp3": "libmp3lame",
        "m4a": "aac",
        "aif": "pcm_s16be",
        "aiff": "pcm_s24be",
    },
    **{"au": "pcm_s16be", "g722": "g722", "mka": "libopus", "webm": "libopus"},
    **{"wma": "libmp3lame"},
}
VIDEOS = ("mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "gif")
PICTURES = ("png", "jpg", "jpeg", "webp", "bmp")
FILES, WORDS = 400, 100  # cases of the fast suite: of files, and of each kind of words


class Reader:
    """A process that reads files, started again when it had to be killed or died."""

    def __init__(self) -> None:
        self.start()
        self.first = None

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, Path(__file__).parents[1] / "fuzz_reader.py"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def read(self, kind: str, path: Path) -> str:
        """`read`, `refused`, or what was wrong."""
        self.process.stdin.write(f"{kind} {path}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().rstrip("\n")
        if not answer and (code := self.process.wait()) == -signal.SIGPROF:
            answer = "0 hang"
        elif not answer:
            answer = f"0 crash with code {code}"
        peak, said = answer.split(" ", 1)
        if said not in ("read", "refused"):
            self.stop()
            self.start()
            self.first = None
            return said
        self.first = self.first or int(peak)
        return said if int(peak) - self.first < MEMORY else f"{peak} MiB of memory"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def reader():
    """One process for all files."""
    reader = Reader()
    yield reader
    reader.stop()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[tuple[str, str], bytes]:
    """A small whole file of every format that is read: (kind, suffix) to its bytes."""
    folder = tmp_path_factory.mktemp("whole")
    for name, codec in SOUNDS.items():
        rate = {"g722": 16000}.get(codec, 48000)
        encode(folder / f"sound.{name}", tone(seconds=0.25), codec, rate)
    for name in VIDEOS:
        path = folder / f"video.{name}"
        hostile.gif(path, 32, 32, 6) if name == "gif" else hostile.video(path, [0, 1, 2, 3])
    values = np.random.default_rng(0).integers(0, 256, (24, 24, 4), dtype=np.uint8)
    for name in PICTURES:
        picture = Image.fromarray(values).convert("RGB" if name.startswith("j") else "RGBA")
        picture.save(folder / f"picture.{name}")
    (folder / "font.sf2").write_bytes(find_font(None).read_bytes())
    (folder / "idx.idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, *[0, 0, 0, 4] * 3, *range(64)]))
    save_file({"x": torch.ones(4)}, folder / "model.safetensors", {"format": '"scm-core-1"'})
    with tarfile.open(folder / "shard.tar", "w") as file:
        for name in ("picture.png", "sound.flac"):
            file.add(folder / name, name)
    (folder / "yaml.yaml").write_text("data:\n  root: a\nseed: [1, 2]\nteacher: {lr: 1e-3}\n")
    return {(path.stem, path.suffix): path.read_bytes() for path in sorted(folder.iterdir())}


def damaged(content: bytes, how: str, play: random.Random) -> bytes:
    """A file cut off, with bits or bytes changed, with parts repeated, or of noise."""
    changed, size = bytearray(content), len(content)

    def place() -> int:  # mostly where a file has its structure, near either end
        near = play.randrange(min(size, 512))
        return play.choice((near, size - 1 - near, play.randrange(size)))

    if how == "cut":
        return content[: play.randrange(size)]
    if how == "noise":
        return play.randbytes(play.randrange(2000))
    if how == "head":
        return content[: play.randrange(1, min(size, 64))] + play.randbytes(2000)
    for _ in range(play.choice((1, 2, 4, 16, 64))):
        at, length = place(), play.choice((1, 2, 4, 8))
        if how == "bits":
            changed[at] ^= 1 << play.randrange(8)
        elif how == "bytes":
            number = play.choice((0, 1, 0x7F, 0x80, 0xFF, play.randrange(256)))
            changed[at : at + length] = bytes([number]) * length
        else:
            start = place()
            changed[at:at] = changed[start : start + 64 * length]
    return bytes(changed)


HOW = ("cut", "bits", "bytes", "repeat", "head", "noise")


def check_files(reader: Reader, whole: dict, folder: Path, count: int) -> None:
    """Read damaged files of every format; what fails keeps its file."""
    formats, seen = sorted(whole), Counter()
    for kind, suffix in formats:
        (folder / f"whole{suffix}").write_bytes(whole[kind, suffix])
        answer = reader.read(kind, folder / f"whole{suffix}")
        assert answer == ("refused" if kind == "model" else "read"), (kind, suffix, answer)
    failures = []

    @cases(count)
    @given(st.sampled_from(formats), st.sampled_from(HOW), st.integers(0, 2**32))
    def check(form: tuple[str, str], how: str, seed: int) -> None:
        kind, suffix = form
        path = folder / f"{how}-{seed}{suffix}"
        path.write_bytes(damaged(whole[form], how, random.Random(seed)))
        answer = reader.read(kind, path)
        seen[kind, answer if answer in ("read", "refused") else "failed"] += 1
        if answer in ("read", "refused"):
            path.unlink()
        else:
            failures.append(f"{kind} {path}: {answer}")

    check()
    print(sum(seen.values()), "files:", dict(sorted(seen.items())))
    assert not failures, "\n".join(failures)
    assert sum(seen.values()) >= count


def test_damaged_files_of_every_format(reader, whole, tmp_path):
    check_files(reader, whole, tmp_path, FILES)


@pytest.mark.slow
def test_many_damaged_files_of_every_format(reader, whole, tmp_path):
    check_files(reader, whole, tmp_path, 8_000)


KNOWN = ("modality", "preset", "stage", "out", "seed", "n", "steps", "sampler", "guidance", "label")
KNOWN += ("data", "data.root", "data.size", "teacher", "teacher.lr", "limits.pixels", "decoder")
KNOWN += ("student.phases", "trainer.devices", "batch_size", "checkpoint", "max_steps")
LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
VALUES = st.one_of(
    st.text(LETTERS, max_size=12),
    st.sampled_from(["image", "smoke", "cpu", "???", "${seed}", "${oc.env:X}", "null", "1", "-1"]),
    st.text("[]{}:,*&!|>%@`'\"#\\${}?-. a0\n\t", max_size=12),
    st.floats().map(str),
    st.integers(-(10**30), 10**30).map(str),
)
PAIRS = st.tuples(st.one_of(st.sampled_from(KNOWN), st.text(LETTERS, max_size=8)), VALUES)
ARGUMENTS = st.lists(st.one_of(PAIRS.map("=".join), st.text(LETTERS, max_size=12)), max_size=5)
PLAIN = st.recursive(
    st.one_of(VALUES, st.integers(), st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KNOWN), inner, max_size=3)
    ),
    max_leaves=8,
)


def cases(count: int):
    """Hypothesis's settings of a test that is the same each time."""
    ignored = list(HealthCheck)
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=ignored,
    )


def tried(seen: Counter, command, *words) -> None:
    """Count how a command ends; what it raises other than a UserError is the test's failure."""
    try:
        command(*words)
        seen["accepted"] += 1
    except UserError as error:
        assert str(error)
        seen["refused"] += 1


def check_train(folder: Path, count: int) -> None:
    """The words of a training, and of a training with a preset of random YAML."""
    seen, preset = Counter(), folder / "preset.yaml"

    @cases(count)
    @given(ARGUMENTS)
    def words(arguments: list[str]) -> None:
        tried(seen, config.load, arguments)
        tried(seen, config.load, ["modality=image", "preset=smoke", *arguments])

    @cases(count)
    @given(st.one_of(PLAIN.map(yaml.safe_dump), st.text(LETTERS, max_size=60)))
    def text(content: str) -> None:
        preset.write_text(content)
        tried(seen, config.load, ["modality=audio", f"preset={preset}"])

    words()
    text()
    finished("trainings", seen, 3 * count)


def check_sample(monkeypatch, count: int) -> None:
    """The words of `sample`, with a model that draws nothing."""
    model = checkpoint.load(ROOT / "checkpoints" / "image" / "student.safetensors")
    monkeypatch.setattr(sample, "open_checkpoint", lambda *_: model)
    monkeypatch.setattr(sample, "sample_all", lambda *_: torch.zeros(1, *model.shape))
    monkeypatch.setattr(sample, "write", lambda *_: [Path("a")])
    monkeypatch.setattr(sample, "provenance_of", lambda *_: [])
    parse = sample.parse_condition
    monkeypatch.setattr(sample, "parse_condition", lambda schema, asked, _: parse(schema, asked, 1))
    seen = Counter()

    @cases(count)
    @given(ARGUMENTS)
    def words(arguments: list[str]) -> None:
        tried(seen, sample.main, arguments)

    words()
    finished("samplings", seen, count)


def finished(what: str, seen: Counter, least: int) -> None:
    print(sum(seen.values()), f"{what}:", dict(sorted(seen.items())))
    assert sum(seen.values()) >= least and seen["refused"] and seen["accepted"]


def test_random_words_and_yaml_for_a_training(tmp_path):
    check_train(tmp_path, WORDS)


def test_random_words_for_samples(monkeypatch):
    check_sample(monkeypatch, WORDS)


@pytest.mark.slow
def test_many_random_words(monkeypatch, tmp_path):
    check_train(tmp_path, 1_000)
    check_sample(monkeypatch, 1_000)
