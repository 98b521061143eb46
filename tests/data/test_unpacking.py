"""What libraries of data sets unpack stays in its folder, and nothing else of Python changes."""

import io
import tarfile

import pytest

from scm_core.data.limits import unpacking


def archive(path, name):
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        tar.addfile(member, io.BytesIO(b"text"))
    return tarfile.open(path)


def test_members_stay_in_the_folder(tmp_path):
    folder = tmp_path / "folder"
    with unpacking(), archive(tmp_path / "good.tar", "a/b") as tar:
        tar.extractall(folder)
    assert (folder / "a" / "b").read_bytes() == b"text"
    with unpacking(), archive(tmp_path / "bad.tar", "../outside") as tar:
        with pytest.raises(tarfile.TarError):
            tar.extractall(folder)
    assert not (tmp_path / "outside").exists()


def test_a_python_that_knows_no_such_rule_unpacks_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    with unpacking(), archive(tmp_path / "good.tar", "a") as tar:
        with pytest.raises(tarfile.TarError, match="3.11.4"):
            tar.extractall(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_tarfile_is_afterwards_as_it_was():
    before = dict(vars(tarfile.TarFile))
    with pytest.raises(KeyboardInterrupt), unpacking():
        assert vars(tarfile.TarFile) != before
        raise KeyboardInterrupt
    assert vars(tarfile.TarFile) == before
