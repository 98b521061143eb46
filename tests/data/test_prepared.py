"""What is made of a folder's files: kept group by group, whatever ends the command."""

import errno
import os

import pytest
import torch

from scm_core.base.errors import UserError
from scm_core.data.folders import Skipped
from scm_core.data.prepared import Joined, prepare

FILES = 1500
ENDS = 1234  # the file at which the first attempt ends


class Reader:
    """Makes as many rows of a file as it has bytes, and counts the files it was asked for."""

    def __init__(self, ends=None, error=KeyboardInterrupt):
        self.asked, self.ends, self.error = 0, ends, error

    def __call__(self, path):
        self.asked += 1
        if path.stem == self.ends:
            raise self.error
        content = path.read_bytes()
        if not content:
            return Skipped("it is empty", broken=False)
        return {"value": torch.tensor(list(content))[:, None]}


@pytest.fixture
def folder(tmp_path):
    """Files of none to two bytes."""
    (tmp_path / "set").mkdir()
    for i in range(FILES):
        (tmp_path / "set" / f"{i:05d}.txt").write_bytes(bytes([i % 251, i % 7])[: i % 3])
    return tmp_path / "set"


def prepared(folder, reader, settings=()):
    paths = sorted(folder.iterdir())
    tables = prepare(folder, paths, reader, dict(settings), folder.parent / "cache", "text")
    columns = (torch.cat([rows[name] for rows in tables]) for name in ("value", "file"))
    return [(paths[file].stem, value) for (value,), file in zip(*map(list, columns), strict=True)]


def expected(folder):
    return [(path.stem, byte) for path in sorted(folder.iterdir()) for byte in path.read_bytes()]


def test_an_interrupted_preparation_goes_on(folder):
    with pytest.raises(KeyboardInterrupt):
        prepared(folder, Reader(ends=f"{ENDS:05d}"))
    again, once_more = Reader(), Reader()
    assert prepared(folder, again) == expected(folder)
    assert FILES - ENDS <= again.asked < FILES
    assert prepared(folder, once_more) == expected(folder) and once_more.asked == 0


@pytest.mark.parametrize("change", ["added", "removed", "mended"])
def test_a_change_costs_its_group_and_no_other(folder, change):
    prepared(folder, Reader())
    path = folder / ("00700x.txt" if change == "added" else "00700.txt")
    path.unlink() if change == "removed" else path.write_bytes(b"new")
    reader = Reader()
    assert prepared(folder, reader) == expected(folder)
    assert 0 < reader.asked < FILES / 2


def test_other_settings_read_all_anew(folder):
    prepared(folder, Reader())
    reader = Reader()
    prepared(folder, reader, {"size": 3})
    assert reader.asked == FILES


def test_a_damaged_group_is_made_again(folder, caplog):
    prepared(folder, Reader())
    group = sorted((folder.parent / "cache").iterdir())[0]
    group.write_bytes(group.read_bytes()[:100])
    reader = Reader()
    assert prepared(folder, reader) == expected(folder)
    assert 0 < reader.asked < FILES and "is made again" in caplog.text


def test_where_nothing_can_be_kept_all_is_made(folder, caplog):
    (folder.parent / "cache").write_text("no folder")
    assert prepared(folder, Reader()) == expected(folder)
    assert "cannot be written" in caplog.text


NUMBERS = (errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOENT, errno.ENOMEM, errno.ESTALE)
MACHINE = [
    *(OSError(number, os.strerror(number)) for number in NUMBERS),
    *(MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    ModuleNotFoundError("No module named 'codec'"),
]


@pytest.mark.parametrize("error", MACHINE, ids=repr)
def test_what_the_machine_refuses_is_not_remembered_of_a_file(folder, error):
    with pytest.raises(UserError, match="00700.txt cannot be read now .*same command again"):
        prepared(folder, Reader("00700", error))
    assert prepared(folder, Reader()) == expected(folder)


def test_what_a_decoder_says_of_bytes_is_remembered(folder, caplog):
    prepared(folder, Reader("00700", OSError("image file is truncated")))
    reader = Reader()
    prepared(folder, reader)
    assert reader.asked == 0 and caplog.text.count("00700.txt: image file is truncated") == 2


def test_a_file_that_is_gone_is_one_sentence(folder):
    paths = [*sorted(folder.iterdir()), folder / "99999.txt"]
    with pytest.raises(UserError, match="99999.txt cannot be read now .No such file"):
        prepare(folder, paths, Reader(), {}, folder.parent / "cache", "text")


def test_broken_files_are_named_and_too_many_refused(folder, caplog):
    prepared(folder, Reader("00700", ValueError("no text")))
    assert "00700.txt: no text" in caplog.text and "00000.txt: it is empty" in caplog.text
    for path in folder.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no text that can be used"):
        prepared(folder, Reader())
    with pytest.raises(UserError, match="1500 of 1500 texts are broken"):
        prepared(folder, lambda path: path.read_text("no codec"), {"size": 3})


def test_joined_tensors_are_indexed_as_one():
    parts = [torch.arange(n * 6).view(n, 2, 3) + 100 * n for n in (4, 0, 1, 7)]
    joined, whole = Joined(parts), torch.cat(parts)
    chosen = torch.tensor([11, 0, 4, 4, 3, 5, 10])
    assert joined.shape == whole.shape and len(joined) == 12
    assert torch.equal(joined[chosen], whole[chosen])
    assert joined[chosen[:0]].shape == (0, 2, 3)
