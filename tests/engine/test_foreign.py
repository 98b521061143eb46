"""A model's file names no place outside of it, and takes no more memory than its weights."""

import pytest
import torch
from hostile import described, model, stated

from modalities.common import pretrained
from scm_core import UserError
from scm_core.apps.opening import open_checkpoint
from scm_core.base import merging
from scm_core.base.arguments import marked
from scm_core.engine import config, foreign


@pytest.fixture
def student(tmp_path):
    """A function that writes the shipped image student with other keys in its configuration."""

    def write(**sections: dict) -> str:
        changed = {**stated("config"), **sections}
        return f"checkpoint={described(tmp_path / 'student.safetensors', config=changed)}"

    return write


@pytest.mark.parametrize("command", ["sample", "evaluate", "hub"])
def test_a_file_does_not_choose_which_hub_is_asked(refused, student, monkeypatch, command):
    asked = []
    monkeypatch.setattr(pretrained, "load", lambda name, *_: asked.append(name))
    words = [student(decoder={"pretrained": "evil/\x1b[2Jvae"}), "out=out"]
    said = refused(command, *words)
    assert not asked and r"names 'evil/\x1b[2Jvae' as its decoder.pretrained" in said
    assert "decoder.pretrained=evil" not in said


def test_the_user_names_the_autoencoder_of_a_file(tmp_path, monkeypatch):
    """As the command line says, which a model of pretrained latents needs."""
    asked = []
    monkeypatch.setattr(pretrained, "load", lambda name, *_: asked.append(name))
    latents = {**stated("statistics"), "latents": {"of": [1, 28, 28], "mean": [0.0], "std": [1.0]}}
    changed = {**stated("config"), "decoder": {"pretrained": "evil/vae"}}
    path = described(tmp_path / "a.safetensors", config=changed, statistics=latents)
    with pytest.raises(UserError, match="latents of another autoencoder"):
        open_checkpoint(str(path), None, {"decoder.pretrained": "mine/vae"})
    assert asked == ["mine/vae"]


@pytest.mark.parametrize("value", ["/etc/passwd", "~/.ssh/id", "../x", "a/b", "C:\\x", ["x", "/y"]])
def test_a_text_like_a_path_is_a_place_in_any_plugin(refused, student, value):
    said = refused("sample", student(backbone={"options": {"weights": value}}))
    assert "as its backbone.options.weights" in said


def test_a_vocoder_of_a_file_s_choice_is_not_opened(refused, tmp_path):
    path = model(tmp_path / "a.safetensors", decoder__weights="bare")
    said = refused("sample", f"checkpoint={path}")
    assert "names 'bare' as its decoder.weights" in said


def test_where_the_data_lay_hinders_no_sampling_and_is_not_looked_at(refused, student, tmp_path):
    path = student(data={"name": "fashion_mnist", "root": str(tmp_path / "secret")})
    found = open_checkpoint(path.removeprefix("checkpoint="), None)
    assert found.config.data.root is None and found.config.data.name == "fashion_mnist"
    described(tmp_path / "teacher.safetensors", stage="teacher")
    said = refused("evaluate", path, "preset=smoke")
    assert "as its data.root" in said and "data.root=/" not in said
    said = refused("evaluate", path, "preset=smoke", f"data.root={tmp_path}/mine")
    assert f"{tmp_path}/mine" in said  # which is looked at


def test_what_a_plugin_ships_is_as_good_as_its_code():
    assert open_checkpoint(None, "audio").config.data.font


def test_every_key_that_names_a_file_is_declared():
    """By its name, so that a new one is not forgotten."""
    for name in ("image", "audio", "video"):
        spec = config.load([f"modality={name}", "preset=smoke"])[0]
        known = merging.keys(config.defaults(spec))
        names = ("root", "font", "weights", "out", "pretrained", "preset", "text_encoder", "clip")
        names += ("init_from",)
        named = {key for key in known if key.split(".")[-1] in names}
        assert named == set(marked(spec.config, place=True))


def test_what_is_built_is_bound_by_the_weights():
    weights = {"x": torch.zeros(10)}
    with foreign.Bounded(weights, "a"):
        torch.zeros(1000, 1000)
    with (
        pytest.raises(UserError, match="a describes a larger"),
        foreign.Bounded(weights, "a"),
    ):
        torch.ones(1 << 20, 1 << 20)
    with pytest.raises(UserError, match="larger model"), foreign.Bounded(weights, "a"):
        x = torch.ones(1 << 16)
        x[:, None] * x
    with pytest.raises(UserError, match="larger model"), foreign.Bounded(weights, "a"):
        for _ in range(10_000):
            torch.empty(0)


def test_a_scale_does_not_multiply_a_weight(refused, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = described(tmp_path / "a.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    parts = {"x": torch.zeros(1, 9, dtype=torch.int8), "x/scale": torch.zeros(9).half()}
    save_file(parts, path, metadata)
    assert "other scales than rows" in refused("sample", f"checkpoint={path}")
