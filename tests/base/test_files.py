"""Files are whole, durable and the same each time; what the disk refuses is one sentence."""

import errno
import os
import resource
import subprocess
import sys

import pytest
import torch
from hostile import SHIPPED
from safetensors import safe_open
from torch import nn

from scm_core.base import files
from scm_core.base.errors import UserError
from scm_core.base.files import save_tensors, write_text
from scm_core.data import cache
from scm_core.engine import storage
from scm_core.evaluation import classifier


def judge(path):
    batches = iter([(torch.ones(2, 9000), torch.tensor([0, 1]))])
    classifier.trained(lambda: nn.Linear(9000, 2), batches, 1, 0.1, "judge", path.parent)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 9000),
        lambda path: files.copy(SHIPPED, path),
        lambda path: storage.shrink(SHIPPED, path),
        lambda path: judge(path),
    ],
)
def test_a_full_disk_is_one_sentence(tmp_path, write):
    """As far as a limit on the size of files is a full disk."""
    path = cache.place(tmp_path, "judge")
    path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {path}: .*File too large"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_processes_of_one_number_do_not_disturb_each_other(tmp_path):
    """As in two containers, whose processes are counted from 1 in each."""
    path = tmp_path / "a"
    with files.whole(path) as one:
        with files.whole(path) as two:
            one.write_text("one")
            two.write_text("two")
        assert path.read_text() == "two"
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_loses_what_it_took_leaves_the_file_before(tmp_path, monkeypatch):
    """Some tell of it when they are to have it for good, and no sooner."""
    path = tmp_path / "a"
    path.write_text("before")

    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left on device"):
        write_text(path, "after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_its_name_and_then_the_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.fstat(file).st_ino) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("named") or replace(*names))
    write_text(tmp_path / "a", "content")
    assert done == [(tmp_path / "a").stat().st_ino, "named", tmp_path.stat().st_ino]


def test_tensors_make_the_same_bytes_in_every_process(tmp_path):
    """The order of safetensors' metadata is random in each."""
    metadata = {f"é{i}\n": f'"{i}\x1f' for i in range(20)}
    tensors = {"b": torch.arange(3).half(), "a": torch.ones(2, 5), "é": torch.tensor([1, -1])}
    for name in ("here", "again"):
        save_tensors(tmp_path / name, tensors, metadata)
    code = "import sys, torch; from pathlib import Path\n"
    code += "from scm_core.base.files import save_tensors\n"
    code += "t = {'é': torch.tensor([1, -1]), 'a': torch.ones(2, 5), 'b': torch.arange(3).half()}\n"
    code += "m = {f'é{i}\\n': f'\"{i}\\x1f' for i in reversed(range(20))}\n"
    code += "save_tensors(Path(sys.argv[1]), t, m)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "there"], check=True)
    assert len({(tmp_path / name).read_bytes() for name in ("here", "again", "there")}) == 1
    with safe_open(tmp_path / "here", "pt") as file:
        assert file.metadata() == metadata
        assert all(file.get_tensor(name).equal(value) for name, value in tensors.items())


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o007, 0o660)])
def test_files_are_read_by_whom_the_umask_says(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        storage.shrink(SHIPPED, tmp_path / "small.safetensors")
        cache.keep(tmp_path / "kept.safetensors", ({"x": torch.ones(1)}, {}))
        files.copy(SHIPPED, tmp_path / "copy")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_a_folder_is_one_process_s_and_free_again_when_it_dies(tmp_path):
    code = "import sys; from pathlib import Path; from scm_core.base.files import Lock\n"
    code += "with Lock(Path(sys.argv[1])) as lock: lock.take(); print(flush=True); input()"
    line = [sys.executable, "-c", code, tmp_path / "run"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with files.Lock(tmp_path / "run") as lock, pytest.raises(UserError) as caught:
            lock.take()
        assert f"is in use by process {other.pid} on " in str(caught.value)
        other.kill()
    with files.Lock(tmp_path / "run") as lock:
        lock.take()
        lock.take()  # it has it already


def test_a_file_system_without_locks_is_gone_on_with(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "lockf", lockf)
    with files.Lock(tmp_path / "run") as lock:
        lock.take()
