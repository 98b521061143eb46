"""Configuration: the order of layers and the sentence for every mistake."""

import pytest
from environment import ROOT
from omegaconf import OmegaConf

from modalities.audio.data import AudioDataModule
from modalities.image.data import ImageDataModule
from scm_core import UserError
from scm_core.apps import sample
from scm_core.contract import objectives
from scm_core.engine import config


def load(*words):
    return config.load(["modality=image", *words])[1]


def test_later_layers_win(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("teacher: {max_steps: 7, lr: 0.5}\n")
    merged = load(f"preset={preset}", "teacher.lr=0.25")
    assert merged.data.name == "fashion_mnist"  # the modality's config.yaml
    assert merged.student.guidance == 1.5  # config.yaml over the dataclass
    assert merged.teacher.max_steps == 7  # the preset over both
    assert merged.teacher.lr == 0.25  # the command line over all
    assert merged.out == "runs/image-mine"


@pytest.mark.parametrize("preset", ["smoke", "cpu", "gpu", "demo"])
def test_every_preset_merges(preset):
    assert load(f"preset={preset}").preset == preset


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("teacher.max_stesp=3", "did you mean teacher.max_steps?"),
        ("max_steps_teacher=3", "command line: no key max_steps_teacher"),
        ("studnet.lr=1", "did you mean student"),
        ("dat.root=x", "did you mean data"),
        ("teacher.lr=fast", "teacher.lr"),
        ("preset=smok", "did you mean smoke?"),
        ("preset=nowhere.yaml", "no file nowhere.yaml"),
        ("stage", "not key=value"),
        ("student.phases={consistency: 1, steps: 5}", "student.phases: it must be a list"),
        ("backbone.options=[1]", "backbone.options: it must be a section"),
        ("modality=imgae", "did you mean image?"),
    ],
)
def test_each_mistake_gets_one_sentence(word, words):
    with pytest.raises(UserError) as caught:
        load(word)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_modality_is_required():
    with pytest.raises(UserError, match="which modality"):
        config.load(["seed=3"])


def test_a_broken_preset_names_its_file(tmp_path):
    preset = tmp_path / "broken.yaml"
    preset.write_text("teacher: [1, 2\n")
    with pytest.raises(UserError, match="broken.yaml is not a YAML configuration"):
        load(f"preset={preset}")


def test_plain_containers_only():
    plain = config.plain(load())
    assert type(plain) is dict and type(plain["teacher"]) is dict


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("max_time=10:00:00", "max_time", "10:00:00"),
        ("out=20261126_0900", "out", "20261126_0900"),
        ("out=3.10", "out", "3.10"),
        ("out=1e5", "out", "1e5"),
        ("out=yes", "out", "yes"),
        ("out=none", "out", "none"),
        ("data.root=my #2", "data.root", "my #2"),
        ("data.root=a: b", "data.root", "a: b"),
        ("data.root='quoted'", "data.root", "'quoted'"),
        ("data.root=[0]", "data.root", "[0]"),
        ("data.root=a=b", "data.root", "a=b"),
        ("data.root=null", "data.root", None),
        ("data.root=", "data.root", None),
        ("data.root=~/pictures", "data.root", "/home/somebody/pictures"),
        ("out=~/run", "out", "/home/somebody/run"),
        ("data.root=${oc.env:HOME}/x", "data.root", "/home/somebody/x"),
        ("trainer.precision=32", "trainer.precision", "32"),
        ("seed=010", "seed", 10),
        ("seed=1_000", "seed", 1000),
        ("teacher.lr=1e-4", "teacher.lr", 1e-4),
        ("data.size=null", "data.size", None),
        ("data.flip=yes", "data.flip", True),
        ("student.options.endpoint.points=2", "student.options.endpoint.points", 2),
        ("backbone.options.channels=[32,64]", "backbone.options.channels", [32, 64]),
        ("backbone.options={blocks: 2}", "backbone.options", {"blocks": 2}),
    ],
)
def test_a_word_is_what_its_key_says(monkeypatch, word, key, value):
    """Texts stand as they are written, numbers are decimal, lists and sections are YAML."""
    monkeypatch.setenv("HOME", "/home/somebody")
    assert OmegaConf.select(load(word), key) == value


def test_a_word_of_the_wrong_type_is_refused():
    for word in ("seed=1:00", "seed=1.5", "data.flip=maybe", "data.size=[1]"):
        with pytest.raises(UserError, match=word.split("=")[0]):
            load(word)
    for word in ("student.phases.0.steps=5", "student.phases[0].steps=5"):
        with pytest.raises(UserError, match=r"student\.phases is given as a whole"):
            load(word)


def test_a_word_that_no_file_could_hold_is_refused(refused):
    said = refused("train", "modality=image", "data.root=caf\udce9")
    assert "no UTF-8" in said and "a link to it" in said


def test_every_command_takes_texts_as_they_stand(tmp_path, refused, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"no checkpoint at {tmp_path}/my #2:" in refused("sample", "checkpoint=~/my #2")
    assert "no checkpoint at 3.10:" in refused("hub", "checkpoint=3.10", "out=1e5")
    assert "no checkpoint at 1_0:" in refused("evaluate", "checkpoint=1_0", "data.root=a: b")
    assert f"root={tmp_path}/a: b is not" in refused("pack", "root=~/a: b", "out=yes")
    words = ["modality=image", "n=1", "batch_size=1", "steps=1", "out=~/drawn"]
    sample.main(words)
    assert (tmp_path / "drawn" / "00000.png").exists()
    said = refused("evaluate", "modality=image", "preset=smoke", "features=5", f"out={tmp_path}")
    assert "features=5 cannot be used" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["max_time=soon"], "max_time=soon is not DD:HH:MM:SS"),
        (["stage=studnet"], "stage=studnet is none of"),
        (["stage=student"], "no teacher at"),
        (["max_steps=0"], "max_steps=0 must be at least 1"),
        (["trainer.strategy=dpp"], "strategy='dpp'"),
        (["trainer.precision=17"], "trainer.precision=17 is none of auto, 32-true"),
        (["trainer.precision=bf16-true"], "trainer.precision=bf16-true is none of"),
        (["trainer.accelerator=gpuu"], "gpuu"),
        (["trainer.devices=none"], "devices"),
        (["backbone.name=unett"], "backbone.name=unett is none of"),
        (["backbone.size=huge"], "backbone.size=huge is none of"),
        (["out=/dev/null/run"], "/dev/null is no folder"),
        (["modality=audio", "decoder.vocoder=wave"], "decoder.vocoder=wave is none of"),
    ],
)
def test_what_can_be_refused_is_refused_before_data_are_read(
    refused, monkeypatch, tmp_path, words, sentence
):
    for module in (ImageDataModule, AudioDataModule):
        monkeypatch.setattr(module, "setup", lambda *_: pytest.fail("the data were read"))
    said = refused("train", "modality=image", "preset=smoke", f"out={tmp_path}", *words)
    assert sentence in said


PRESETS = sorted((ROOT / "configs").glob("*/*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_preset_heeds_the_student_s_learning_rate(path):
    """A phase that states a rate of its own does not, so the last one states none."""
    words = [f"modality={path.parent.name}", f"preset={path.stem}", "student.lr=2e-5"]
    assert objectives.phases(config.load(words)[1].student)[-1].lr == 2e-5
