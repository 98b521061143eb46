"""Data at a URL are copied once; what was interrupted resumes, what has changed is another copy."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import fsspec
import pytest

from modalities.image.folder import read_folder
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.data import remote
from scm_core.data.remote import local


@pytest.fixture
def bucket():
    system = fsspec.filesystem("memory")
    for name in ("a.tar", "b.tar", "sub/c.txt"):
        system.pipe(f"/bucket/set/{name}", name.encode())
    yield system
    system.rm("/bucket", recursive=True)


def test_a_copy_resumes_and_follows_what_changes(bucket, tmp_path, monkeypatch):
    copy, seen = remote._copy, []

    def breaks_off(system, name, target):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(name)
        copy(system, name, target)

    monkeypatch.setattr(remote, "_copy", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        local("memory://bucket/set", tmp_path)
    seen.clear()
    folder = local("memory://bucket/set", tmp_path)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"a.tar", "b.tar", "sub/c.txt"} and len(seen) == 1
    assert (folder / "sub" / "c.txt").read_text() == "sub/c.txt"
    assert local("memory://bucket/set", tmp_path) == folder and len(seen) == 1
    bucket.pipe("/bucket/set/a.tar", b"other")
    seen[:] = []
    monkeypatch.setattr(remote, "_copy", copy)
    assert (local("memory://bucket/set", tmp_path) / "a.tar").read_bytes() == b"other"


def test_what_changes_on_the_web_is_another_copy(tmp_path):
    pytest.importorskip("aiohttp")
    path = tmp_path / "set" / "a.tar"
    path.parent.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(path.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for content in (b"one", b"another"):
            path.write_bytes(content)
            folder = local(f"http://127.0.0.1:{server.server_port}/", tmp_path / "cache")
            assert (folder / "a.tar").read_bytes() == content
        server.shutdown()


def test_what_is_not_there_or_not_known_is_a_sentence(bucket, tmp_path):
    for root in ("memory://bucket/nothing", "nosuch://bucket"):
        with pytest.raises(UserError, match=f"data.root={root}") as error:
            local(root, tmp_path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="would lie outside"):
        remote._within("bucket/set/../../x", "bucket/set")
    assert local(str(tmp_path)) == tmp_path


def test_pictures_are_read_from_a_url(bucket, tmp_path, monkeypatch):
    import texts

    for path, _ in texts.pictures(tmp_path / "set", 6):
        bucket.pipe(f"/bucket/pictures/{path.name}", path.read_bytes())
    monkeypatch.setattr(local, "__defaults__", (tmp_path / "cache",))
    train, test, _ = read_folder("memory://bucket/pictures", None, 3, Limits())
    assert (len(train), len(test)) == (5, 1)
