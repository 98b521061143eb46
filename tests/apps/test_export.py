"""Students as graphs: what was written gives what PyTorch gives, for any batch."""

import functools
import math
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
import toy_plugin
from environment import ROOT

from scm_core.apps import export
from scm_core.apps.opening import open_checkpoint
from scm_core.base.errors import UserError
from scm_core.engine import sampling

SHIPPED = {
    "image": ((5, 1, 28, 28), torch.uint8),
    "audio": ((5, 80, 64), torch.float32),
    "video": ((5, 3, 16, 32, 32), torch.uint8),
}


def command(*words):
    line = [sys.executable, "-m", "scm_core.export", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "student.safetensors"
    toy_plugin.write_student(path)
    return path


def compare(program, model):
    """The same noise through a .pt2 and through two-step sampling."""
    condition = sampling.cycled_condition(model.condition, 5)
    first = sampling.seeded_noise(model.shape, 5, 3, model.sigma_data)
    fresh = sampling.fresh_noise(3, 0)(first)
    media = torch.export.load(program).module()(
        torch.stack([first / model.sigma_data, fresh]), condition
    )
    draw = sampling.make_sampler(model)
    drawn = sampling.sample_all(model, draw, condition, 5, seed=3, batch_size=5)
    return media, drawn


def test_a_written_graph_draws_what_the_command_draws(toy, tmp_path, capsys):
    words = ["modality=toy_plugin:SPEC", f"checkpoint={toy}"]
    export.main([*words, "format=torch", f"out={tmp_path / 'toy.pt2'}"])
    assert float(re.search(r"relative\s+error\s+(\S+)", capsys.readouterr().out)[1]) < 1e-3
    model = open_checkpoint(str(toy), "toy_plugin:SPEC", device="cpu")
    media, drawn = compare(tmp_path / "toy.pt2", model)
    torch.testing.assert_close(media, drawn, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # half a minute
def test_so_does_that_of_the_shipped_images(tmp_path):
    done = command("modality=image", "format=torch", f"out={tmp_path / 'image.pt2'}")
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"relative error (\S+)", done.stdout)[1]) < 1e-3
    model = open_checkpoint(None, "image", device="cpu")
    media, drawn = compare(tmp_path / "image.pt2", model)
    expected = model.codec.decode(drawn)
    assert media.dtype == torch.uint8 and media.shape == expected.shape
    assert (media.float() - expected.float()).abs().mean() < 1  # which may be bf16's


def test_onnx_takes_any_batch_and_needs_no_decoder(toy, tmp_path, capsys):
    """A plugin whose decoder has no graph ends at x."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "toy.onnx"
    export.main(["modality=toy_plugin:SPEC", f"checkpoint={toy}", "steps=2", f"out={path}"])
    assert "relative error" in capsys.readouterr().out and list(tmp_path.iterdir()) == [path]
    session = onnxruntime.InferenceSession(path)
    noise, pitch = np.ones((2, 7, 1, 16), np.float32), np.arange(7) % 2
    (x,) = session.run(["media"], {"noise": noise, "pitch": pitch})
    assert x.shape == (7, 1, 16) and np.isfinite(x).all()


def test_a_graph_that_onnxruntime_refuses_is_one_sentence(toy, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    session = functools.partial(onnxruntime.InferenceSession, tmp_path / "another.onnx")
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda path, **more: session(**more))
    words = ["modality=toy_plugin:SPEC", f"checkpoint={toy}", f"out={tmp_path / 'toy.onnx'}"]
    with pytest.raises(UserError, match="toy.onnx is no graph that onnxruntime takes: use format="):
        export.main(words)


def test_a_large_graph_finds_its_weights_beside_it(toy, tmp_path, monkeypatch):
    """As those above the limit of a protobuf file are written, wherever they are moved to."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    save = torch.onnx.ONNXProgram.save
    apart = functools.partialmethod(save, external_data=True)
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", apart)
    path = tmp_path / "made" / "toy.onnx"
    export.main(["modality=toy_plugin:SPEC", f"checkpoint={toy}", f"out={path}"])
    assert sorted(each.name for each in path.parent.iterdir()) == ["toy.onnx", "toy.onnx.data"]
    moved = path.parent.rename(tmp_path / "moved")
    onnxruntime.InferenceSession(moved / "toy.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("modality", SHIPPED)
def test_a_shipped_student_as_onnx(modality, tmp_path):
    """Within the bar, of the right shape; the documentation's example runs on the images'."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / f"{modality}.onnx"
    done = command(f"modality={modality}", f"out={path}")
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"relative error (\S+)", done.stdout)[1]) < 1e-3
    model = open_checkpoint(None, modality, device="cpu")
    noise = np.zeros((2, 5, *model.shape), np.float32)
    condition = sampling.cycled_condition(model.condition, 5)
    fed = {"noise": noise, **{key: value.numpy() for key, value in condition.items()}}
    (media,) = onnxruntime.InferenceSession(path).run(None, fed)
    shape, dtype = SHIPPED[modality]
    assert media.shape == shape and torch.from_numpy(media).dtype == dtype
    if modality == "image":
        page = (ROOT / "docs" / "export.md").read_text()
        example = next(b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "onnx" in b)
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout == "(4, 1, 28, 28) uint8\n", done.stderr


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["modality=image"], "give out=FILE"),
        (["modality=image", "out=x", "format=tflite"], "none of onnx, torch, diffusers"),
        (["modality=image", "out=x", "steps=0"], "steps=0 must be at least 1"),
        (["checkpoint=checkpoints/image/teacher.safetensors", "out=x"], "holds a teacher"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(words, sentence, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=sentence):
        export.main(words)


def test_a_full_disk_is_one_sentence(toy, tmp_path):
    """Torch's own writer would end the process."""
    words = ["modality=toy_plugin:SPEC", f"checkpoint={toy}", "format=torch"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*x.pt2: File too large"):
            export.main([*words, f"out={tmp_path / 'x.pt2'}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_draws_no_numbers_is_not_passed(toy, tmp_path, monkeypatch):
    nowhere = {"torch": lambda *_: lambda noise, condition: torch.full((1,), math.nan)}
    monkeypatch.setattr(export, "WRITERS", nowhere)
    words = ["modality=toy_plugin:SPEC", f"checkpoint={toy}", "format=torch"]
    with pytest.raises(UserError, match="do not use it"):
        export.main([*words, f"out={tmp_path / 'x.pt2'}"])


def test_a_missing_extra_and_a_folder_that_refuses(toy, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="may be written to"):
        export.main(
            [
                "modality=toy_plugin:SPEC",
                f"checkpoint={toy}",
                "format=torch",
                f"out={tmp_path / 'file' / 'x.pt2'}",
            ]
        )
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'scm-core\[export\]'"):
        export.main(["modality=toy_plugin:SPEC", f"checkpoint={toy}", f"out={tmp_path / 'x.onnx'}"])
