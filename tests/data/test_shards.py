"""Shards: what is packed is what the folder was, whole, harmless, and resumed in mid-epoch."""

import gzip
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
import sounds
import torch
from hostile import torch_file
from images import raw
from PIL import Image
from safetensors.torch import load_file

from modalities.audio.data import AudioData, AudioDataModule
from modalities.audio.mel import MelSettings
from modalities.image.data import ImageData, ImageDataModule
from modalities.image.folder import read_folder
from modalities.video.data import VideoData
from modalities.video.folder import read_folder as read_videos
from modalities.video.folder import read_frames
from scm_core.apps.sharing import pack
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.data import shards
from scm_core.data.folders import classified
from scm_core.data.media import write_video


def packed(root, out, **keys):
    pack.main([f"root={root}", f"out={out}", *(f"{key}={value}" for key, value in keys.items())])
    return out


@pytest.fixture(scope="session")
def pictures(fashion_root, tmp_path_factory) -> Path:
    """40 real images of two classes."""
    root = tmp_path_factory.mktemp("pictures") / "set"
    images, labels = raw(fashion_root, "train")
    for i in range(40):
        path = root / ("shirts" if labels[i] % 2 else "boots") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[i, 0].numpy()).save(path)
    (root / "boots" / ".hidden").touch()
    return root


@pytest.fixture(scope="session")
def clips(fashion_root, tmp_path_factory) -> Path:
    """Two classes of three videos each, a picture that moves."""
    root = tmp_path_factory.mktemp("clips") / "set"
    images, _ = raw(fashion_root, "train")
    for i in range(6):
        still = images[i].expand(3, 28, 28)
        video = torch.stack([still.roll(t, i % 2 + 1) for t in range(8)], 1)
        write_video(video, root / ("down", "right")[i % 2] / f"{i}.mp4", 8)
    return root


def modules(kind, root, cache):
    """What a plugin makes of a folder: its schema, and all of both splits."""
    keys = {"name": "folder", "root": str(root)}
    if kind == "clips":
        splits = read_videos(VideoData(frames=4, size=16, **keys), cache, Limits())[:2]
        chosen = [(split, torch.arange(len(split))) for split in splits]
        return splits[0].schema, [(split.media(i), split.condition(i)) for split, i in chosen]
    if kind == "pictures":
        data = ImageDataModule(ImageData(channels=1, batch_size=3, **keys))
    else:
        data = AudioDataModule(AudioData(batch_size=3, **keys), MelSettings(), cache)
    data.setup()
    torch.manual_seed(0)
    return data.condition, [*data.train_dataloader(), *data.val_dataloader(), *data.real("train")]


@pytest.mark.parametrize("kind", ["pictures", "sounds", "clips"])
def test_shards_give_what_the_folder_gives(kind, request, tmp_path):
    root = sounds.NOTES if kind == "sounds" else request.getfixturevalue(kind)
    shards = packed(root, tmp_path / "shards")
    schema, batches = modules(kind, shards, tmp_path / "cache")
    expected_schema, expected = modules(kind, root, tmp_path / "cache")
    assert schema == expected_schema and len(batches) == len(expected) > 1
    for (x, condition), (y, wanted) in zip(batches, expected, strict=True):
        assert torch.equal(x, y) and condition.keys() == wanted.keys()
        assert all(torch.equal(condition[key], wanted[key]) for key in wanted)


def train(out, root, workers):
    """Eight steps of a teacher, of which four are an epoch, as a process of its own."""
    words = ["modality=image", "preset=smoke", "stage=teacher", "trainer.accelerator=cpu"]
    words += ["data.name=folder", f"data.root={root}", "data.channels=1", "data.batch_size=8"]
    words += [f"data.workers={workers}", "max_steps=8", f"out={out}"]
    return subprocess.Popen([sys.executable, "-m", "scm_core.train", *words])


@pytest.mark.slow
def test_a_run_on_shards_goes_on_in_mid_epoch(pictures, tmp_path):
    """Killed and with workers, it ends in the weights of one on the folder without either."""
    out = tmp_path / "whole", tmp_path / "parts"
    shards = packed(pictures, tmp_path / "shards")
    assert train(out[0], pictures, workers=0).wait() == 0
    run = train(out[1], shards, workers=2)
    while not (out[1] / "teacher" / "last.ckpt").exists():  # written every 2 steps
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert not (out[1] / "teacher.safetensors").exists()
    assert train(out[1], shards, workers=2).wait() == 0
    wanted, found = (load_file(place / "teacher.safetensors") for place in out)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_shard_holds_whole_files_and_nothing_of_who_packed_them(pictures, tmp_path):
    out = packed(pictures, tmp_path / "a")
    (shard,) = out.iterdir()
    with tarfile.open(shard) as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar}
        assert {(info.uid, info.gid, info.uname, info.mode) for info in tar} == {(0, 0, "", 0o644)}
    assert files == {
        f"{path.parent.name}/{path.name}": path.read_bytes() for path in pictures.glob("*/*.png")
    }
    assert [name.split("/")[0] for name in files] != sorted(name.split("/")[0] for name in files)
    again = packed(pictures, tmp_path / "b") / shard.name
    assert again.read_bytes() == shard.read_bytes()


def test_links_and_large_files(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "one").mkdir(parents=True)
    for i in range(5):
        (root / "one" / f"{i}.wav").write_bytes(bytes(600_000 + 900_000 * (i == 4)))
    (root / "two").symlink_to(root / "one")
    (root / "one" / "back").symlink_to(root)
    (root / "hard.wav").hardlink_to(root / "one" / "0.wav")
    packed(root, out, megabytes=1)
    assert len(list(out.iterdir())) == 11 and {
        len(list(shards.read(s))) for s in out.iterdir()
    } == {1}
    found = sorted(str(member.relative_to(out)) for member in shards.members(out))
    names = [f"{folder}/{i}.wav" for folder in ("one", "two") for i in range(5)]
    assert found == ["hard.wav", *names]


def test_an_interrupted_packing_goes_on(tmp_path, monkeypatch):
    root, out = tmp_path / "root", tmp_path / "out"
    for i in range(4):
        (root / "one").mkdir(parents=True, exist_ok=True)
        (root / "one" / f"{i}.wav").write_bytes(bytes([i]) * 700_000)
    write, written = pack.write, []

    def interrupted(shard, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard)
        write(shard, *rest)

    monkeypatch.setattr(pack, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packed(root, out, megabytes=1)
    with pytest.raises(UserError, match="has 2 of 4 shards"):
        list(shards.members(out))
    written[1].write_bytes(written[1].read_bytes()[:-100_000])  # as if by a full disk
    (out / ".00002-of-00004.1.part.tar").write_bytes(b"")  # as by kill -9
    monkeypatch.setattr(
        pack, "write", lambda shard, *rest: written.append(shard) or write(shard, *rest)
    )
    packed(root, out, megabytes=1)
    assert [path.name[:5] for path in written] == ["00000", "00001", "00001", "00002", "00003"]
    assert {member.open().read(1) for member in shards.members(out)} == {b"\0", b"\1", b"\2", b"\3"}


def test_what_cannot_be_packed_is_one_sentence(refused, pictures, tmp_path):
    assert "give root=FOLDER out=FOLDER" in refused("pack", f"root={pictures}")
    assert "is not a folder" in refused("pack", "root=/nowhere", f"out={tmp_path}/out")
    (tmp_path / "empty").mkdir()
    assert "has no files" in refused("pack", f"root={tmp_path}/empty", f"out={tmp_path}/out")
    inside = refused("pack", f"root={pictures}", f"out={pictures}/out")
    assert "shards go elsewhere" in inside
    out = packed(pictures, tmp_path / "out")
    (pictures.parent / "other" / "one").mkdir(parents=True)
    assert "at least 1" in refused("pack", f"root={pictures}", f"out={out}", "megabytes=0")
    for name in ("a.png", "b.png"):
        (pictures.parent / "other" / "one" / name).write_bytes(bytes(600_000))
    words = ["pack", f"root={pictures.parent}/other", f"out={out}", "megabytes=1"]
    assert "has other shards (00000-of-00001.tar)" in refused(*words)


def tar(path, *members, **changes):
    """A tar of empty pictures of these names, their headers changed."""
    with tarfile.open(path, "w") as file:
        for name in members:
            info = tarfile.TarInfo(name)
            for key, value in changes.items():
                setattr(info, key, value)
            file.addfile(info)
    return path


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "one/../../evil.png"])
def test_a_name_in_a_shard_stays_in_its_folder(refused, tmp_path, name):
    tar(tmp_path / "a.tar", name)
    words = ["modality=image", "data.name=folder", f"data.root={tmp_path}", f"out={tmp_path}/run"]
    assert f"a.tar is no whole, uncompressed tar file ({name} would lie" in refused("train", *words)


@pytest.mark.parametrize("date", ["inf", "nan", "1e300"])
def test_a_date_that_is_none_is_one_sentence(tmp_path, date):
    tar(tmp_path / "a.tar", "one/a.png", pax_headers={"mtime": date})
    with pytest.raises(
        UserError, match=r"a\.tar is no whole, .*one/a\.png has a date that is none"
    ):
        classified(tmp_path, {".png"}, "image")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_shard_are_no_files(tmp_path, kind):
    tar(tmp_path / "a.tar", "one/a.png", type=kind, linkname="/etc/passwd")
    with pytest.raises(UserError, match="has no image"):
        classified(tmp_path, {".png"}, "image")


def negative(content: bytes, kind: bytes) -> bytes:
    """A tar whose second header says that it is so long as to begin before itself."""
    header = bytearray(content[512:1024])
    header[124:136] = b"\xff" + (256**11 - 1024).to_bytes(11, "big")
    header[156:157], header[148:156] = kind, b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return content[:512] + header + content[1024:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"text",
        lambda content: content[:1500],
        lambda content: content[:1536],
        lambda content: content[:512] + bytes([85]) * 512 + content[1024:],
        gzip.compress,
        *(partial(negative, kind=kind) for kind in (b"0", b"x", b"g", b"L", b"K", b"S")),
    ],
)
def test_a_damaged_shard_is_one_sentence(tmp_path, damage):
    path = tar(tmp_path / "a.tar", *(f"one/{i}.png" for i in range(40)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="a.tar is no whole, uncompressed tar file"):
        classified(tmp_path, {".png"}, "image")


def test_a_shard_with_a_payload(tmp_path, mark):
    path = torch_file(mark, tmp_path / "a.tar")
    with pytest.raises(UserError, match="no whole, uncompressed tar file"):
        classified(tmp_path, {".png"}, "image")
    path.unlink()
    torch_file(mark, tmp_path / "set" / "one" / "a.png")
    packed(tmp_path / "set", tmp_path / "shards")
    with pytest.raises(UserError, match="1 of 1 images are broken"):
        read_folder(str(tmp_path / "shards"), 16, 3, Limits())


def test_two_shards_with_one_name(tmp_path):
    for name in ("a.tar", "b.tar"):
        tar(tmp_path / name, "one/a.png")
    with pytest.raises(UserError, match="a.tar and .*b.tar both hold .*one/a.png"):
        classified(tmp_path, {".png"}, "image")


def test_shards_in_a_linked_folder_are_read(tmp_path):
    for place in ("set", "disk"):
        (tmp_path / place).mkdir()
    tar(tmp_path / "set" / "a.tar", "one/a.png")
    tar(tmp_path / "disk" / "b.tar", "two/b.png")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "disk")
    found = [str(file.relative_to(tmp_path / "set")) for file in shards.members(tmp_path / "set")]
    assert found == ["one/a.png", "more/two/b.png"]


def test_limits_hold_in_shards(tmp_path, clips):
    (member, *_) = shards.members(packed(clips, tmp_path / "shards"))
    with pytest.raises(ValueError, match="limits.bytes=10"):
        read_frames(member, 8, 16, Limits(bytes=10))
