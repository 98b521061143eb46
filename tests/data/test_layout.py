"""Which folders of a data set are its split, which are classes, and which are nobody's."""

import logging
import tarfile
from pathlib import Path

import pytest

from scm_core.base.errors import UserError
from scm_core.data.folders import classified


def read(folder: Path, *paths: str, pattern: str | None = None) -> dict[str, tuple[str, str]]:
    """Of a folder of these empty files: class to its training and its held-out files' paths."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    classes, held = classified(folder, {".png"}, "image", pattern)

    def said(files):
        return " ".join(file.relative_to(folder).as_posix() for file in files)

    return {
        name: (said(f for f in files if f not in held), said(f for f in files if f in held))
        for name, files in classes.items()
    }


def laid_out(train: str, held: str) -> list[str]:
    """Two classes of two training files and a held-out one; in both folders * is the class."""
    return [
        f"{place.replace('*', name)}/{i}.png"
        for name in ("cats", "dogs")
        for place, i in ((train, 1), (train, 2), (held, 3))
    ]


@pytest.mark.parametrize(
    ("train", "held"),
    [
        ("train/*", "valid/*"),
        ("Train/*", "VAL/*"),
        ("training/*", "validation/*"),
        ("train/*", "dev/*"),
        ("Training/*", "Testing/*"),
        ("train2017/*", "val2017/*"),
        ("training_set/*", "test_set/*"),
        ("training_set/training_set/*", "test_set/test_set/*"),
        ("dataset/train/*", "dataset/valid/*"),
        ("a/b/train/*", "a/b/Test/*"),
        ("*/train", "*/valid"),
        ("*/images/Train", "*/images/Test"),
        ("train/*/a", "valid/*/b"),
    ],
)
def test_a_folder_called_valid_is_the_held_out_split(tmp_path, train, held):
    found = read(tmp_path, *laid_out(train, held))
    assert list(found) == ["cats", "dogs"]
    for name, files in found.items():
        here, there = train.replace("*", name), held.replace("*", name)
        assert files == (f"{here}/1.png {here}/2.png", f"{there}/3.png")


def test_test_is_held_out_before_valid_and_what_is_left_out_is_said(tmp_path, capsys):
    paths = [f"{part}/cats/1.png" for part in ("train", "test", "valid", "extra")]
    assert read(tmp_path, *paths) == {"cats": ("train/cats/1.png", "test/cats/1.png")}
    assert "trained on: train; held out: test; left out: extra, valid" in capsys.readouterr().out


def test_a_split_without_classes_is_one_class_of_its_folder_s_name(tmp_path):
    found = read(tmp_path, "photos/Train/1.png", "photos/Valid/2.png")
    assert found == {"photos": ("photos/Train/1.png", "photos/Valid/2.png")}


def test_files_without_a_folder_of_their_own_are_one_class_wherever_they_lie(tmp_path):
    both = [read(tmp_path / name, "1.png", "2.png", "3.png") for name in ("here", "there")]
    assert both[0] == both[1] and list(both[0]) == ["all"]


@pytest.mark.parametrize("name", ["test", "train", "val", "Dev"])
def test_a_class_may_have_a_split_s_name_where_no_sibling_makes_it_one(tmp_path, name):
    found = read(tmp_path, *(f"{kind}/{i}.png" for kind in ("cats", name) for i in range(3)))
    assert sorted(found) == sorted(["cats", name])


def test_a_class_called_train_within_a_split_stays_one(tmp_path):
    """As in CIFAR-100 and COCO."""
    paths = [f"{part}/{kind}/1.png" for part in ("train", "test") for kind in ("train", "car")]
    assert list(read(tmp_path, *paths)) == ["car", "train"]


def test_held_out_files_without_any_to_train_on_are_refused(tmp_path):
    with pytest.raises(UserError, match="has test and valid, .* nothing to train on"):
        read(tmp_path, "test/cats/1.png", "valid/cats/1.png")


def test_a_pattern_gives_the_classes_of_a_split(tmp_path):
    found = read(tmp_path, "Train/cat_1.png", "Train/dog_2.png", "valid/cat_3.png", pattern="(.+)_")
    assert found == {"cat": ("Train/cat_1.png", "valid/cat_3.png"), "dog": ("Train/dog_2.png", "")}


LITTER = (
    *(".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN"),
    "System Volume Information",
)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("home", ["", "cats/", "cats/deep/"])
def test_what_is_hidden_or_a_system_s_own_is_no_class_and_no_file(tmp_path, home, packed):
    paths = [f"{home}{name}/{i}.png" for name in LITTER for i in range(2)]
    paths += ["cats/1.png", "cats/2.png", "cats/._1.png", "dogs/.DS_Store", "dogs/3.png"]
    folder = tmp_path / ".hidden" / "set"  # which is nobody's business
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    if packed:
        (tmp_path / "shards").mkdir()
        with tarfile.open(tmp_path / "shards" / "all.tar", "w") as tar:
            tar.add(folder, ".")
        (tmp_path / "shards" / "._all.tar").write_bytes(b"what a Mac leaves")
        folder = tmp_path / "shards"
    found = read(folder)
    assert {name: sorted(" ".join(files).split()) for name, files in found.items()} == {
        "cats": ["cats/1.png", "cats/2.png"],
        "dogs": ["dogs/3.png"],
    }


@pytest.mark.parametrize("train", ["", "train/"])
def test_a_class_that_vanishes_is_named_with_its_endings(tmp_path, caplog, train):
    (tmp_path / train / "empty").mkdir(parents=True)
    paths = [f"{train}cats/1.png", f"{train}cats/2.png", f"{train}cats/2.txt"]
    paths += [f"{train}birds/{name}" for name in ("1.heic", "2.HEIC", "3")]
    with caplog.at_level(logging.WARNING):
        assert list(read(tmp_path, *paths, "README.txt")) == ["cats"]
    assert caplog.messages == [
        "birds is no class: it has no image (of png); 2 of .heic, 1 of no ending",
        "empty is no class: it has no image (of png); it is empty",
        "left out in classes, as no image (of png): 1 of .txt",
    ]


@pytest.mark.parametrize("pattern", [None, r"^([a-z]+)_"])
def test_files_of_other_endings_are_counted_without_class_folders_too(tmp_path, caplog, pattern):
    with caplog.at_level(logging.WARNING):
        read(
            tmp_path,
            "cat_1.png",
            "cat_2.png",
            "cat_3.HEIC",
            "sub/cat_4.heic",
            "LICENCE.txt",
            pattern=pattern,
        )
    assert caplog.messages == ["left out, as no image (of png): 2 of .heic"]
