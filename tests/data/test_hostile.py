"""No file runs code: payloads in each kind of file, and what a checkpoint states."""

import ast
import json
import urllib.request
from pathlib import Path

import pytest
import torch
from hostile import SHIPPED, described, pickled, stated, torch_file
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from modalities.common import pretrained
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.data import cache
from scm_core.engine import checkpoint, config
from scm_core.evaluation import classifier

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(
    "text",
    [
        "data: {root: '${oc.env:SECRET}'}",
        "data: {root: '${oc.env:SECRET,none}'}",
        'data: {root: "$\\x7boc.env:SECRET}"}',
        "data: {root: '${oc.decode:${oc.env:SECRET}}'}",
        "data: {root: '${.name}${oc.env:${.name}}', name: SECRET}",
        r"data: {root: '\${oc.env:SECRET}'}",
        "data: {root: '${ oc.env:SECRET }'}",
    ],
)
def test_no_file_looks_up_the_environment(refused, tmp_path, monkeypatch, fashion_root, text):
    """Not a preset, nor the config.yaml of a run directory."""
    monkeypatch.setenv("SECRET", fashion_root)
    preset = tmp_path / "preset.yaml"
    preset.write_text(text)
    said = refused("train", "modality=image", f"preset={preset}", "stage=student")
    assert "is not another key" in said and fashion_root not in said
    (tmp_path / "config.yaml").write_text(text)
    words = ["modality=image", "preset=smoke", f"data.root={fashion_root}", f"out={tmp_path}"]
    assert "config.yaml" in refused("train", *words)


def test_keys_may_name_each_other_and_words_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    preset = tmp_path / "preset.yaml"
    preset.write_text("teacher: {lr: 0.5}\nstudent: {lr: '${teacher.lr}'}")
    words = ["modality=image", f"preset={preset}", "data.root=${oc.env:SOMEWHERE}"]
    settings = config.load(words)[1]
    assert (settings.student.lr, settings.data.root) == (0.5, "/data")


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
    assert "not installed, 'evil:SPEC'" in said and "modality=evil" not in said
    hidden = {**stated("config"), "modality": "evil:SPEC"}
    described(tmp_path / "teacher.safetensors", modality="evil:SPEC", stage="teacher")
    described(tmp_path / "student.safetensors", config=hidden)
    words = ["preset=smoke", f"data.root={ROOT}/tests/assets/fashion-mnist"]
    said = refused("evaluate", f"checkpoint={tmp_path}/student.safetensors", *words)
    assert "holds a model of evil:SPEC, not of image" in said


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"modality": ["image"]}, "does not state its modality"),
        ({"shape": {"a": 1}}, "does not state its shape"),
        ({"shape": ["a", "b"]}, "states shape"),
        (
            {"condition": {"label": {"kind": "os"}}},
            "student.safetensors: condition label is of the",
        ),
        ({"condition": {"label": {"kind": "label", "classes": 10**12}}}, "is too large"),
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


def test_a_checkpoint_hides_no_lookup_behind_escapes(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    hiding = {**stated("config"), "data": {"root": "${oc.env:SECRET}"}}
    text = json.dumps(hiding).replace("${", "$\\u007b")
    with safe_open(SHIPPED, "pt") as file:
        metadata = {**file.metadata(), "config": text}
    save_file(load_file(SHIPPED), tmp_path / "student.safetensors", metadata)
    said = refused("sample", f"checkpoint={tmp_path}/student.safetensors")
    assert "which is not looked up" in said


def test_metadata_nested_without_end(refused, tmp_path):
    path = tmp_path / "student.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"format": "[" * 100_000})
    assert "not a readable" in refused("sample", f"checkpoint={path}")


def test_limits_are_the_machine_s_and_not_the_model_s(tmp_path):
    lax = {**stated("config"), "limits": {"pixels": 10**12}, "out": "/"}
    model = checkpoint.load(described(tmp_path / "student.safetensors", config=lax))
    assert OmegaConf.to_object(model.config.limits) == Limits() and model.config.out is None
