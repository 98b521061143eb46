"""Configuration: the order of layers and the sentence for every mistake."""

import pytest

from scm_core import UserError, config


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
