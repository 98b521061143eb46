"""Names, lists, archives and links lead nowhere else."""

import io
import shutil
import tarfile
from pathlib import Path

import hostile
import pytest
from hostile import SHIPPED, described
from PIL import Image

from modalities.audio.recordings import speech_commands
from modalities.video.data import VideoData, VideoDataModule
from scm_core.apps import sample
from scm_core.apps.sharing import hub
from scm_core.base.errors import UserError
from scm_core.data import provenance
from scm_core.data.folders import classified


@pytest.mark.parametrize("name", ["../../a.mp4", "/a.mp4", "One/../../a.mp4", "../a.mp4", "a.mp4"])
def test_a_list_of_ucf101_stays_in_its_folder(tmp_path, name):
    for part in ("train", "test"):
        path = tmp_path / "set" / "ucfTrainTestlist" / f"{part}list01.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} 1\n")
    hostile.video(tmp_path / "a.mp4", [0])
    (tmp_path / "set" / "UCF-101" / "One").mkdir(parents=True)
    shutil.copy(tmp_path / "a.mp4", tmp_path / "set" / "a.mp4")
    with pytest.raises(UserError, match="which is no CLASS/FILE"):
        VideoDataModule(VideoData(name="ucf101", root=str(tmp_path / "set"))).setup()


@pytest.mark.parametrize("name", ["ucfTrainTestlist/trainlist01.txt", "testing_list.txt"])
def test_lists_that_are_no_text(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\xff\xfe\x00/\x80.mp4 1\n" * 3)
    with pytest.raises(UserError):
        if "ucf" in name:
            VideoDataModule(VideoData(name="ucf101", root=str(tmp_path))).setup()
        else:
            speech_commands(str(tmp_path))


@pytest.mark.parametrize("kind", ["up", "absolute", "link", "hard link", "device"])
def test_an_archive_of_speech_commands_unpacks_into_its_folder(tmp_path, kind):
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.mkdir()
    home.mkdir()
    with tarfile.open(home / "speech_commands_v0.02.tar.gz", "w:gz") as archive:
        names = {"up": "../../../outside/a", "absolute": f"{outside}/a"}
        member = tarfile.TarInfo(names.get(kind, "a"))
        if kind in ("link", "hard link"):
            member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
            member.linkname = "../../../outside"
        if kind == "device":
            member.type = tarfile.CHRTYPE
        member.size = 4 if member.isfile() else 0
        archive.addfile(member, io.BytesIO(b"evil") if member.isfile() else None)
        if kind == "link":
            behind = tarfile.TarInfo("a/b")
            behind.size = 4
            archive.addfile(behind, io.BytesIO(b"evil"))
    with pytest.raises(UserError):
        speech_commands(str(home))
    assert not list(outside.iterdir())
    assert not [path for path in home.rglob("*") if path.is_symlink() or path.is_char_device()]


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_in_a_medium_s_clothes_opens_nothing(tmp_path, kind):
    hostile.video(tmp_path / "private.ts", [0, 1, 2])
    (tmp_path / "set").mkdir()
    for other in (tmp_path / "private.ts", "private.ts"):
        shutil.copy(tmp_path / "private.ts", tmp_path / "set" / "private.ts")
        for reader, name in (("video", "a.mp4"), ("sound", "a.wav"), ("picture", "a.png")):
            (tmp_path / "set" / name).write_text(PLAYLISTS[kind].format(other))
            with pytest.raises(Exception, match="[Ii]nvalid|cannot identify"):
                hostile.read(reader, tmp_path / "set" / name)


def test_postscript_in_a_picture_s_clothes_starts_no_program(tmp_path):
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_text(eps)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "EPS"  # which Pillow would give to Ghostscript
    with pytest.raises(Exception, match="cannot identify"):
        hostile.read("picture", tmp_path / "a.png")


@pytest.mark.parametrize("name", ["concat:a.wav", "data:audio;base64,AAAA.wav", "pipe:0.wav"])
def test_a_name_that_ffmpeg_would_take_for_an_address(tmp_path, monkeypatch, name):
    hostile.wav(tmp_path / "a.wav", 8_000, 1)
    (tmp_path / name).write_bytes((tmp_path / "a.wav").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(hostile.read("sound", Path(name))) == 8_000


def test_links_in_a_folder(tmp_path):
    """A circle ends, a device and a dangling link are no files; linked files are read."""
    home = tmp_path / "set"
    (home / "one").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "elsewhere.png")
    (home / "one" / "file.png").symlink_to(tmp_path / "elsewhere.png")
    (home / "one" / "circle").symlink_to(home)
    (home / "one" / "zero.png").symlink_to("/dev/zero")
    (home / "one" / "gone.png").symlink_to("nowhere")
    classes, _ = classified(home, {".png"}, "image")
    assert {name: [path.name for path in files] for name, files in classes.items()} == {
        "one": ["file.png"]
    }


def test_classes_from_names_are_names_only(tmp_path):
    """Whatever a file is called, it is not taken for a path, a format or markup."""
    names = ["a..", "[bold]", "{0.__class__}", "%s%n", "\x1b[2J", "${oc.env:HOME}", "a\nb"]
    for i, name in enumerate(names):
        (tmp_path / f"{name}_{i}.png").touch()
    classes, _ = classified(tmp_path, {".png"}, "image", r"^([\s\S]*)_\d")
    assert sorted(classes) == sorted(names)


@pytest.mark.parametrize("name", ["../../etc", "/etc/x", "..", "a/../..", "a/b/c"])
def test_a_hub_name_is_no_path(refused, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "cannot be downloaded" in refused("sample", f"checkpoint=hub:{name}")


def test_a_shared_folder_holds_no_file_from_elsewhere(tmp_path):
    """A model's folder whose figures are links to somebody's secrets is not passed on with them."""
    given = tmp_path / "given"
    given.mkdir()
    shutil.copy(SHIPPED, given / "student.safetensors")
    (tmp_path / "secret").write_text("secret")
    for name in ("metrics.json", "quality_time.png", "teacher.safetensors", "decoder.safetensors"):
        (given / name).symlink_to(tmp_path / "secret")
    hub.main([f"checkpoint={given}", f"out={tmp_path}/shared"])
    shared = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert shared == ["README.md", "student.safetensors"]
    assert "secret" not in (tmp_path / "shared" / "README.md").read_text()


def test_figures_that_are_none(refused, tmp_path):
    shutil.copy(SHIPPED, tmp_path / "student.safetensors")
    (tmp_path / "metrics.json").write_text('{"rows": 3}')
    said = refused("hub", f"checkpoint={tmp_path}", f"out={tmp_path}/shared")
    assert "holds no figures" in said


def test_names_in_a_checkpoint_write_nowhere_else(tmp_path, capsys):
    condition = {"label": {"kind": "label", "classes": 10, "names": ["../../out", "[/x]", "/a"]}}
    path = described(tmp_path / "student.safetensors", condition=condition)
    before = set(tmp_path.iterdir())
    sample.main([f"checkpoint={path}", "n=3", f"out={tmp_path}/[/samples]"])
    written = {found.name for found in tmp_path.rglob("*.png")}
    assert written == {"overview.png", "00000.png", "00001.png", "00002.png"}
    assert len(set(tmp_path.iterdir()) - before) == 1
    assert provenance.read(next(tmp_path.rglob("00000.png")))["label"] == "../../out"


NO_FACTS = ["[]", "3", '{"scm-core": [1]}', '{"scm-core": "a"}', "[" * 100_000]


@pytest.mark.parametrize("text", NO_FACTS, ids=range(5))
def test_provenance_of_nonsense(refused, tmp_path, text):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("scm-core", text)
    Image.new("L", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert "does not say how it was made" in refused("provenance", tmp_path / "a.png")
