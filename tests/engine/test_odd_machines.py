"""Folders and users as some machines have them: no home, any bytes in names, what is no file."""

import getpass
import importlib
import os
import tarfile
from pathlib import Path

import pytest
from images import prepared
from PIL import Image
from torch.utils.data import Dataset

import scm_core
from scm_core.base.errors import UserError
from scm_core.data import cache, layout
from scm_core.data.batches import loader
from scm_core.data.folders import classified

LATIN = os.fsdecode(b"caf\xe9")


@pytest.fixture
def tree(tmp_path):
    """Two classes of eight pictures; one class and one file are called by bytes of Latin-1."""
    for name in (LATIN, "tea"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(tmp_path / "set" / name / f"{i}.png")
    (tmp_path / "set" / "tea" / "7.png").rename(tmp_path / "set" / "tea" / f"{LATIN}.png")
    return tmp_path / "set"


@pytest.mark.parametrize("packed", [False, True])
def test_names_may_be_any_bytes(tree, tmp_path, packed):
    if packed:
        (tmp_path / "packed").mkdir()
        with tarfile.open(tmp_path / "packed" / "a.tar", "w") as tar:
            tar.add(tree, arcname=".")
    root = str(tmp_path / "packed" if packed else tree)
    data = prepared(name="folder", root=root, batch_size=4)
    assert len(data.train_set) + len(data.test_set) == 16 and data.condition["label"].classes == 2
    assert data.identity == prepared(name="folder", root=str(tree), batch_size=4).identity


def test_only_files_are_read(tree):
    before, _ = classified(tree, {".png"}, "image")
    os.mkfifo(tree / "tea" / "pipe.png")
    os.mkfifo(tree / "x.tar")
    assert classified(tree, {".png"}, "image")[0] == before
    (tree.parent / "other").mkdir()
    os.mkfifo(tree.parent / "other" / "x.tar")
    with pytest.raises(UserError, match="has no image"):
        classified(tree.parent / "other", {".png"}, "image")


@pytest.mark.parametrize("closed", [False, True])
def test_without_a_home_there_is_a_warning_and_a_folder_of_ones_own(
    tmp_path, monkeypatch, closed, caplog
):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    if closed:
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:
        monkeypatch.setattr(Path, "home", nobody)
    folder = cache.user_folder()
    assert folder == tmp_path / f"scm-core-{os.getuid()}" and folder.stat().st_mode & 0o077 == 0
    assert caplog.text.count("cannot be used") == 1 and str(folder) in caplog.text
    folder.rmdir()
    folder.symlink_to(tmp_path)  # as somebody else may have made it
    assert cache.kept(cache.user_folder() / "a.safetensors") is None
    assert not cache.user_folder().is_dir()


def test_the_system_s_own_folders_are_no_data():
    with pytest.raises(UserError, match="/proc/self holds the system's own"):
        next(layout.walk(Path("/proc/self")))


def test_a_user_without_a_name_has_a_number(monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setenv("LOGNAME", "")
    importlib.reload(scm_core)
    assert os.environ["LOGNAME"] == str(os.getuid())


class Gone(Dataset):
    """Samples whose files are gone."""

    def __len__(self):
        return 4

    def __getitems__(self, indices):
        raise UserError("a.png can no longer be read")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_says_is_one_sentence(workers):
    with pytest.raises(UserError, match=r"^a.png can no longer be read$"):
        next(iter(loader(Gone(), 2, workers)))


def test_xdg_cache_home_is_where_caches_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.user_folder() == tmp_path / "scm-core"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.user_folder() == Path.home() / ".cache" / "scm-core"


def test_a_cache_that_may_not_be_looked_into_is_a_warning(tmp_path, monkeypatch, caplog):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refused)
    assert cache.kept(tmp_path / "a.safetensors") is None and "Permission denied" in caplog.text


@pytest.mark.parametrize("name", ["is_dir", "iterdir"])
def test_a_folder_that_refuses_to_be_listed_is_one_sentence(tree, monkeypatch, name):
    whole = getattr(Path, name)

    def refused(path):
        if path.name == "tea":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, name, refused)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        list(layout.walk(tree))
