"""A file from the internet can do no harm: payloads, bombs, and names that lead elsewhere."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

import hostile
import pytest
import torch
from hostile import pickled, torch_file
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sounds import NOTES
from torch import nn

from modalities import pretrained
from modalities.audio.recordings import speech_commands
from modalities.video.data import VideoData, VideoDataModule
from scm_core import (
    cache,
    checkpoint,
    classifier,
    cli,
    config,
    evaluate,
    hub,
    provenance,
    sample,
    train,
)
from scm_core.errors import UserError
from scm_core.folders import classified
from scm_core.limits import Limits

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "checkpoints" / "image" / "student.safetensors"
MODULES = {"train": train, "sample": sample, "evaluate": evaluate, "provenance": provenance}
MODULES |= {"hub": hub}


@pytest.fixture
def mark(tmp_path) -> Path:
    """What a payload would write; it must not be there in the end."""
    yield tmp_path / "payload-ran"
    assert not (tmp_path / "payload-ran").exists()


@pytest.fixture
def refused(monkeypatch, capfd):
    """Run a command line that has to end in one sentence and exit code 2; the sentence."""

    def refused(command: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [command, *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            cli.run(MODULES[command].main, "")
        said = capfd.readouterr().err
        assert caught.value.code == 2 and "Traceback" not in said, said
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said
        return errors[0]

    return refused


def described(path: Path, **metadata: object) -> Path:
    """The shipped image student with other metadata."""
    with safe_open(SHIPPED, "pt") as file:
        kept = file.metadata()
    save_file(load_file(SHIPPED), path, {**kept, **{k: json.dumps(v) for k, v in metadata.items()}})
    return path


def stated(key: str) -> dict:
    with safe_open(SHIPPED, "pt") as file:
        return json.loads(file.metadata()[key])


# Payloads


def test_payloads_would_run(tmp_path):
    """What the tests below use does what it is said to do."""
    torch.load(torch_file(tmp_path / "a", tmp_path / "a.pt"), weights_only=False)
    assert (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["teacher/last.ckpt", "teacher.safetensors", "config.yaml"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_run_directory_with_a_payload(refused, tmp_path, mark, fashion_root, name, form):
    path = torch_file(mark, tmp_path / "run" / name)
    if form == "pickle":
        path.write_bytes(pickled(mark))
    words = ["modality=image", "preset=smoke", f"data.root={fashion_root}", f"out={tmp_path}/run"]
    assert path.name in refused("train", *words)


def test_a_checkpoint_of_tensors_alone_is_no_run_to_resume(refused, tmp_path, fashion_root):
    path = tmp_path / "run" / "teacher" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(3)}, path)
    words = ["modality=image", "preset=smoke", f"data.root={fashion_root}", f"out={tmp_path}/run"]
    assert "cannot be read" in refused("train", *words)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_model_with_a_payload(refused, tmp_path, mark, form):
    path = torch_file(mark, tmp_path / "model" / "student.safetensors")
    said = refused("sample", f"checkpoint={path if form == 'file' else path.parent}")
    assert "not a readable safetensors file" in said


def test_a_teacher_with_a_payload(refused, tmp_path, mark):
    teacher = torch_file(mark, tmp_path / "teacher.safetensors")
    assert "safetensors" in refused("evaluate", "modality=image", f"teacher={teacher}")


def test_a_vocoder_with_a_payload(refused, tmp_path, mark):
    weights = torch_file(mark, tmp_path / "generator.pth.tar")
    keys = {"sampling_rate": 22050, "n_fft": 1024, "hop_size": 256, "win_size": 1024}
    keys |= {"num_mels": 80, "fmin": 0, "fmax": 8000}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    words = ["modality=audio", "decoder.vocoder=hifigan", f"decoder.weights={weights}"]
    assert "not a HiFi-GAN generator" in refused("sample", *words)
    (tmp_path / "config.json").write_bytes(pickled(mark))
    assert "config.json" in refused("sample", *words)


@pytest.mark.parametrize(
    "weights", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"]
)
@pytest.mark.parametrize(
    "about",
    [
        {"_class_name": "AutoencoderKL"},
        {"_class_name": "evil"},
        {"model_type": "bert"},
        {"_class_name": "AutoencoderKL", "auto_map": {"AutoModel": "evil.Evil"}},
        [],
    ],
)
def test_an_autoencoder_with_a_payload(tmp_path, mark, monkeypatch, weights, about):
    torch_file(mark, tmp_path / "vae" / weights)
    (tmp_path / "vae" / "config.json").write_text(json.dumps(about))
    (tmp_path / "vae" / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.chdir(tmp_path / "vae")
    monkeypatch.syspath_prepend(str(tmp_path / "vae"))
    with pytest.raises(UserError, match="cannot be read|is no autoencoder"):
        pretrained.load(str(tmp_path / "vae"), (3, 32, 32), {"mean": [0.0] * 3, "std": [1.0] * 3})


def test_sets_and_soundfonts_with_a_payload(refused, tmp_path, mark, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: _offline())
    out = f"out={tmp_path}/run"
    torch_file(mark, tmp_path / "train-images-idx3-ubyte")
    words = ["modality=image", f"data.root={tmp_path}", out]
    assert "not a whole idx file" in refused("train", *words)
    for batch in ("data_batch_1", "test_batch", "batches.meta"):
        path = tmp_path / "cifar-10-batches-py" / batch
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickled(mark))
    assert "CIFAR-10 could not be downloaded" in refused("train", *words, "data.name=cifar10")
    font = torch_file(mark, tmp_path / "font.sf2")
    words = ["modality=audio", f"data.font={font}", out]
    assert "not a soundfont" in refused("train", *words)


def _offline():
    raise OSError("no network here")


@pytest.mark.parametrize(
    ("modality", "name"), [("image", "0.png"), ("audio", "0.wav"), ("video", "0.mp4")]
)
def test_media_with_a_payload(refused, tmp_path, mark, monkeypatch, modality, name):
    monkeypatch.setattr(cache, "CACHE", tmp_path / "cache")
    torch_file(mark, tmp_path / "set" / "one" / name)
    words = [f"modality={modality}", "data.name=folder", f"data.root={tmp_path}/set"]
    assert "1 of 1" in refused("train", *words, f"out={tmp_path}/run")
    assert "cannot be read" in refused("provenance", tmp_path / "set" / "one" / name)


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.mkdir ['{mark}']",
        "seed: !!python/name:os.mkdir",
        "!!python/object/new:os.mkdir ['{mark}']",
    ],
)
def test_a_configuration_with_a_payload(refused, tmp_path, mark, text):
    preset = tmp_path / "preset.yaml"
    preset.write_text(text.format(mark=mark))
    assert "preset.yaml" in refused("train", "modality=image", f"preset={preset}")
    word = text.format(mark=mark).replace(": ", "=")
    assert "!!python" in refused("train", "modality=image", word)


def test_caches_with_a_payload_are_made_again(tmp_path, mark):
    made = {"x": torch.ones(2)}
    torch_file(mark, cache.place(tmp_path, "kept"))
    assert cache.cached(tmp_path, "kept", lambda: (made, {}))[0]["x"].equal(made["x"])
    batches = iter([(torch.ones(2, 1), torch.tensor([0, 1]))] * 2)
    torch_file(mark, cache.place(tmp_path, "judge"))
    judge = classifier.trained(lambda: nn.Linear(1, 2), batches, 2, 0.1, "judge", tmp_path)
    kept = load_file(cache.place(tmp_path, "judge"))
    assert kept["weight"].equal(judge.weight)


def test_no_line_of_the_project_reads_a_pickle():
    """Not even of a package's weights: torch.load everywhere says weights_only=True."""
    loads = 0
    for path in [*ROOT.glob("scm_core/**/*.py"), *ROOT.glob("modalities/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name == "torch.load":
                loads += 1
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True", path
            own = path.name == "data.py" and path.parent.name == "testing"  # what it pickles itself
            assert own or name.split(".")[0] not in ("pickle", "dill", "joblib", "marshal"), path
            assert name not in ("eval", "exec", "np.load", "numpy.load", "yaml.load"), path
    assert loads >= 4


# What a checkpoint states


def test_a_checkpoint_does_not_choose_what_is_imported(refused, tmp_path, mark, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nSPEC = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    asking = described(tmp_path / "student.safetensors", modality="evil:SPEC")
    said = refused("sample", f"checkpoint={asking}")
    assert "not installed: give modality=evil:SPEC too" in said
    hidden = {**stated("config"), "modality": "evil:SPEC"}
    described(tmp_path / "teacher.safetensors", modality="evil:SPEC", stage="teacher")
    described(tmp_path / "student.safetensors", config=hidden)
    words = ["preset=smoke", f"data.root={ROOT}/tests/data/fashion-mnist"]
    said = refused("evaluate", f"checkpoint={tmp_path}/student.safetensors", *words)
    assert "holds a model of evil:SPEC, not of image" in said


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"modality": ["image"]}, "does not state its modality"),
        ({"shape": {"a": 1}}, "does not state its shape"),
        ({"shape": ["a", "b"]}, "backbone unet"),
        ({"condition": {"label": {"kind": "os"}}}, "describes no model"),
        ({"condition": {"label": {"kind": "label", "classes": 10**12}}}, "does not fit"),
        ({"statistics": {}}, "describes no model"),
        ({"config": {"data": {"rooot": "x"}}}, "did you mean data.root"),
        ({"config": {"data": {"root": "${oc.env:HOME}"}}}, "which is not looked up"),
        ({"config": {"backbone": {"channels": 10**7}}}, "does not fit|no key|describes no model"),
    ],
)
def test_a_checkpoint_that_states_nonsense(refused, tmp_path, metadata, sentence):
    path = described(tmp_path / "student.safetensors", **metadata)
    said = refused("sample", f"checkpoint={path}", f"out={tmp_path}/out")
    assert any(part in said for part in sentence.split("|")), said


def test_metadata_nested_without_end(refused, tmp_path):
    path = tmp_path / "student.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"format": "[" * 100_000})
    assert "not a readable" in refused("sample", f"checkpoint={path}")


def test_limits_are_the_machine_s_and_not_the_model_s(tmp_path):
    lax = {**stated("config"), "limits": {"pixels": 10**12}, "out": "/"}
    model = checkpoint.load(described(tmp_path / "student.safetensors", config=lax))
    assert OmegaConf.to_object(model.config.limits) == Limits() and model.config.out is None


# Bombs


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
    hostile.flac(folder / "day.sound.flac", 8_000, 24 * 3600)
    hostile.flac(folder / "silent.sound.flac", 8_000, 24 * 3600, stated=False)
    for suffix in ("mp4", "mkv"):
        hostile.video(folder / f"long.video.{suffix}", [0, 1, 20_000, 20_001])
        hostile.video(folder / f"large.video.{suffix}", [0, 1, 2], 4096, 2160)
    return folder


READ = """
import resource, sys
from pathlib import Path
import hostile
from scm_core.limits import Limits

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

folder, low = Path(sys.argv[1]), Limits(frames=5_000, pixels=1_000_000, seconds=2500)
for kind, make in (("picture", lambda path: hostile.png(path, 64, 64, 64)),
                   ("sound", lambda path: hostile.wav(path, 8000, 1)),
                   ("video", lambda path: hostile.gif(path, 32, 32, 4))):
    hostile.read(kind, make(folder.parent / kind))  # so that what libraries take is not counted
before = peak()
for limits in (Limits(), low):
    for path in sorted(folder.iterdir()):
        if limits is low or "many" not in path.name:
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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    *lines, growth = done.stdout.splitlines()
    found = {"False": {}, "True": {}}
    for low, name, sentence in (line.split("|", 2) for line in lines):
        found[low][name] = sentence
    return found["False"], found["True"], int(growth)


def test_bombs_are_refused(said):
    """By the limits that everybody has, unless asked otherwise."""
    found = {name: text for name, text in said[0].items() if "limits." not in text}
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
    data = spec.build_data(settings)
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


# Names that lead elsewhere


@pytest.mark.parametrize("name", ["../../a.mp4", "/a.mp4", "One/../../a.mp4", "../a.mp4", "a.mp4"])
def test_a_list_of_ucf101_stays_in_its_folder(tmp_path, name):
    for part in ("train", "test"):
        path = tmp_path / "set" / "ucfTrainTestlist" / f"{part}list01.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} 1\n")
    hostile.video(tmp_path / "a.mp4", [0])
    (tmp_path / "set" / "UCF-101" / "One").mkdir(parents=True)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "set" / "a.mp4")
    with pytest.raises(UserError, match="which is no CLASS/FILE"):
        VideoDataModule(VideoData(name="ucf101", root=str(tmp_path / "set"))).setup()


@pytest.mark.parametrize("name", ["ucfTrainTestlist/trainlist01.txt", "testing_list.txt"])
def test_lists_that_are_no_text(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\xff\xfe\x00/\x80.mp4 1\n" * 3)
    with pytest.raises(UserError):
        if "ucf" in name:
            VideoDataModule(VideoData(name="ucf101", root=str(tmp_path))).setup()
        else:
            speech_commands(str(tmp_path))


@pytest.mark.parametrize("kind", ["up", "absolute", "link", "hard link", "device"])
def test_an_archive_of_speech_commands_unpacks_into_its_folder(tmp_path, kind):
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.mkdir()
    home.mkdir()
    with tarfile.open(home / "speech_commands_v0.02.tar.gz", "w:gz") as archive:
        names = {"up": "../../../outside/a", "absolute": f"{outside}/a"}
        member = tarfile.TarInfo(names.get(kind, "a"))
        if kind in ("link", "hard link"):
            member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
            member.linkname = "../../../outside"
        if kind == "device":
            member.type = tarfile.CHRTYPE
        member.size = 4 if member.isfile() else 0
        archive.addfile(member, io.BytesIO(b"evil") if member.isfile() else None)
        if kind == "link":
            behind = tarfile.TarInfo("a/b")
            behind.size = 4
            archive.addfile(behind, io.BytesIO(b"evil"))
    with pytest.raises(UserError):
        speech_commands(str(home))
    assert not list(outside.iterdir())
    assert not [path for path in home.rglob("*") if path.is_symlink() or path.is_char_device()]


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_in_a_medium_s_clothes_opens_nothing(tmp_path, kind):
    hostile.video(tmp_path / "private.ts", [0, 1, 2])
    (tmp_path / "set").mkdir()
    for other in (tmp_path / "private.ts", "private.ts"):
        shutil.copy(tmp_path / "private.ts", tmp_path / "set" / "private.ts")
        for reader, name in (("video", "a.mp4"), ("sound", "a.wav"), ("picture", "a.png")):
            (tmp_path / "set" / name).write_text(PLAYLISTS[kind].format(other))
            with pytest.raises(Exception, match="[Ii]nvalid|cannot identify"):
                hostile.read(reader, tmp_path / "set" / name)


def test_postscript_in_a_picture_s_clothes_starts_no_program(tmp_path):
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_text(eps)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "EPS"  # which Pillow would give to Ghostscript
    with pytest.raises(Exception, match="cannot identify"):
        hostile.read("picture", tmp_path / "a.png")


@pytest.mark.parametrize("name", ["concat:a.wav", "data:audio;base64,AAAA.wav", "pipe:0.wav"])
def test_a_name_that_ffmpeg_would_take_for_an_address(tmp_path, monkeypatch, name):
    hostile.wav(tmp_path / "a.wav", 8_000, 1)
    (tmp_path / name).write_bytes((tmp_path / "a.wav").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(hostile.read("sound", Path(name))) == 8_000


def test_links_in_a_folder(tmp_path):
    """A circle ends, a device and a dangling link are no files; linked files are read."""
    home = tmp_path / "set"
    (home / "one").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "elsewhere.png")
    (home / "one" / "file.png").symlink_to(tmp_path / "elsewhere.png")
    (home / "one" / "circle").symlink_to(home)
    (home / "one" / "zero.png").symlink_to("/dev/zero")
    (home / "one" / "gone.png").symlink_to("nowhere")
    classes, _ = classified(home, {".png"}, "image")
    assert {name: [path.name for path in files] for name, files in classes.items()} == {
        "one": ["file.png"]
    }


def test_classes_from_names_are_names_only(tmp_path):
    """Whatever a file is called, it is not taken for a path, a format or markup."""
    names = ["a..", "[bold]", "{0.__class__}", "%s%n", "\x1b[2J", "${oc.env:HOME}", "a\nb"]
    for i, name in enumerate(names):
        (tmp_path / f"{name}_{i}.png").touch()
    classes, _ = classified(tmp_path, {".png"}, "image", r"^([\s\S]*)_\d")
    assert sorted(classes) == sorted(names)


@pytest.mark.parametrize("name", ["../../etc", "/etc/x", "..", "a/../..", "a/b/c"])
def test_a_hub_name_is_no_path(refused, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "cannot be downloaded" in refused("sample", f"checkpoint=hub:{name}")


def test_a_shared_folder_holds_no_file_from_elsewhere(tmp_path):
    """A model's folder whose figures are links to somebody's secrets is not passed on with them."""
    given = tmp_path / "given"
    given.mkdir()
    shutil.copy(SHIPPED, given / "student.safetensors")
    (tmp_path / "secret").write_text("secret")
    for name in ("metrics.json", "quality_time.png", "teacher.safetensors", "decoder.safetensors"):
        (given / name).symlink_to(tmp_path / "secret")
    hub.main([f"checkpoint={given}", f"out={tmp_path}/shared"])
    shared = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert shared == ["README.md", "student.safetensors"]
    assert "secret" not in (tmp_path / "shared" / "README.md").read_text()


def test_figures_that_are_none(refused, tmp_path):
    shutil.copy(SHIPPED, tmp_path / "student.safetensors")
    (tmp_path / "metrics.json").write_text('{"rows": 3}')
    said = refused("hub", f"checkpoint={tmp_path}", f"out={tmp_path}/shared")
    assert "holds no figures" in said


def test_names_in_a_checkpoint_write_nowhere_else(tmp_path, capsys):
    condition = {"label": {"kind": "label", "classes": 10, "names": ["../../out", "[/x]", "/a"]}}
    path = described(tmp_path / "student.safetensors", condition=condition)
    before = set(tmp_path.iterdir())
    sample.main([f"checkpoint={path}", "n=3", f"out={tmp_path}/[/samples]"])
    written = {found.name for found in tmp_path.rglob("*.png")}
    assert written == {"overview.png", "00000.png", "00001.png", "00002.png"}
    assert len(set(tmp_path.iterdir()) - before) == 1
    assert provenance.read(next(tmp_path.rglob("00000.png")))["label"] == "../../out"


NO_FACTS = ["[]", "3", '{"scm-core": [1]}', '{"scm-core": "a"}', "[" * 100_000]


@pytest.mark.parametrize("text", NO_FACTS, ids=range(5))
def test_provenance_of_nonsense(refused, tmp_path, text):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("scm-core", text)
    Image.new("L", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert "does not say how it was made" in refused("provenance", tmp_path / "a.png")
