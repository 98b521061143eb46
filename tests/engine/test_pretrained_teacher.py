"""Students of pretrained models of diffusers, from the command line to samples and figures."""

import json
import shutil

import pipelines
import pytest
import torch
from PIL import Image

from scm_core.apps import sample
from scm_core.base.errors import UserError
from scm_core.engine import checkpoint, run
from scm_core.engine.storage import read

diffusers = pipelines.diffusers

WORDS = ["modality=image", "preset=smoke", "data.name=folder", "data.batch_size=4"]
WORDS += ["student.phases=[{consistency: 1, steps: 2}]", "trainer.accelerator=cpu", "seed=1"]
WORDS += ["student.options={}"]


def pictures(folder, classes=2):
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        path = folder / f"class{i % classes}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    return folder


@pytest.fixture
def dit(tmp_path):
    """A DiT of 10 classes, whose latents are (4, 8, 8)."""
    pipelines.build(
        "DiTTransformer2DModel", vae=pipelines.vae(scaling_factor=0.5, shift_factor=0.1)
    ).save_pretrained(tmp_path / "dit")
    return tmp_path / "dit"


def train(tmp_path, folder, *words):
    root, out = tmp_path / "pictures", tmp_path / "run"
    if not root.exists():
        pictures(root)
    run.main([*WORDS, f"data.root={root}", f"out={out}", f"pretrained={folder}", *words])
    return out


@pytest.fixture
def trained(tmp_path, dit, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return train(tmp_path, dit, "data.size=16")


def load(path, folder):
    return checkpoint.load(path, "image", "cpu", {"pretrained": str(folder)})


def test_it_is_said_which_of_its_classes_is_which_of_the_datas(tmp_path, dit, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for said in (1, 0):  # once
        train(tmp_path, dit, "data.size=16")
        assert capsys.readouterr().out.count("its class 0 for class0, 1 for class1") == said


def test_a_student_of_a_pretrained_model(tmp_path, dit, trained, refused):
    """Its teacher's file holds no weights, its own all; both sample where pretrained= says."""
    described, weights = read(trained / "teacher.safetensors")
    assert not weights and described["source"]
    teacher = load(trained / "teacher.safetensors", dit)
    plain = diffusers.DiTTransformer2DModel.from_pretrained(
        dit / "transformer", low_cpu_mem_usage=False
    )
    torch.testing.assert_close(dict(teacher.backbone.network.state_dict()), plain.state_dict())
    described, weights = read(trained / "student.safetensors")
    assert {*weights} == {*teacher.backbone.state_dict()}
    assert described["step"] == 2
    sample.main(
        [f"checkpoint={trained}/student.safetensors", f"pretrained={dit}", "n=2"]
        + [f"out={tmp_path}/drawn", "steps=1"]
    )
    assert (tmp_path / "drawn" / "overview.png").exists()
    words = f"checkpoint={trained}/student.safetensors", f"out={tmp_path}/no"
    assert "as its pretrained; no file chooses what is opened" in refused("sample", *words)


def test_its_samples_are_the_pipelines_own_latents(trained, dit):
    student = load(trained / "student.safetensors", dit)
    assert student.shape == (4, 8, 8)
    latents = student.statistics["latents"]
    assert latents["mean"] == [0.1] * 4 and latents["std"] == [2.0] * 4
    media = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    autoencoder = diffusers.AutoencoderKL.from_pretrained(dit / "vae", low_cpu_mem_usage=False)
    z = autoencoder.encode(media / 127.5 - 1).latent_dist.mode()
    torch.testing.assert_close(student.codec.encode(media), 0.5 * (z - 0.1) * 0.5)


def test_a_run_resumes_and_refuses_another_teacher(tmp_path, trained, dit, refused):
    train(tmp_path, dit, "data.size=16")  # done: nothing is trained
    shutil.copytree(dit, tmp_path / "other")
    file = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_end": 0.03}))
    with pytest.raises(UserError, match="is of another pretrained model"):
        load(trained / "teacher.safetensors", tmp_path / "other")
    (trained / "student.safetensors").unlink()
    with pytest.raises(UserError, match="whose teacher was another one than pretrained="):
        train(tmp_path, tmp_path / "other", "data.size=16")


def test_what_does_not_fit_is_said_before_a_run_begins(tmp_path, dit, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="pretrained=.* cannot take samples of 4 x 7 x 7"):
        train(tmp_path, dit, "data.size=14")
    with pytest.raises(UserError, match="stage=teacher is none of student"):
        train(tmp_path, dit, "stage=teacher")
    with pytest.raises(UserError, match="leave decoder.pretrained out"):
        train(tmp_path, dit, "decoder.pretrained=x")
    assert not (tmp_path / "run").exists()


def test_a_model_of_pixels_by_the_name_teacher(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pipelines.build("UNet2DModel").save_pretrained(tmp_path / "unet")
    pictures(tmp_path / "pictures")
    out = tmp_path / "run"
    words = f"data.root={tmp_path}/pictures", f"out={out}", "data.size=8", "stage=student"
    words = *words, "student.tangent=difference"
    run.main([*WORDS, *words, f"teacher={tmp_path / 'unet'}"])
    student = load(out / "student.safetensors", tmp_path / "unet")
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert student.codec.encode(white).unique().tolist() == [0.5]


def test_a_student_starts_with_a_slow_embedding_of_time(trained, dit):
    teacher, student = (load(trained / f"{n}.safetensors", dit) for n in ("teacher", "student"))
    first, other = (
        one.backbone.network.transformer_blocks[0].norm1.emb.timestep_embedder.linear_1.weight
        for one in (student, teacher)
    )
    assert other.abs().sum(0).min() > 0 and (first.abs().sum(0) == 0).sum() > 50
