"""What disk or network refuse once says nothing of a file: it is neither remembered nor dropped."""

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from sounds import NOTES

from modalities.audio.data import AudioData, AudioDataModule
from modalities.audio.mel import MelSettings
from modalities.image import folder as pictures
from modalities.image.data import ImageData, ImageDataModule
from modalities.video.data import VideoData, VideoDataModule
from scm_core.base.errors import UserError
from scm_core.data.media import write_video

BAD = "2"  # the name of the file that cannot be read at first


def picture(path):
    pixels = torch.randint(
        256, (64, 64, 3), generator=torch.Generator().manual_seed(int(path.name))
    )
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path.with_suffix(".png"))


def sound(path):
    shutil.copy(sorted(NOTES.glob("*/*.flac"))[int(path.name)], path.with_suffix(".flac"))


def video(path):
    clip = torch.randint(256, (3, 8, 32, 32), generator=torch.Generator().manual_seed(1))
    write_video(clip.to(torch.uint8), path.with_suffix(".mkv"), 8, lossless=True)


def images(root, cache):
    return ImageDataModule(ImageData(name="folder", root=root, batch_size=2))


def sounds(root, cache):
    data = AudioData(name="folder", root=root, batch_size=2, frames=16)
    return AudioDataModule(data, MelSettings(), cache)


def clips(root, cache):
    data = VideoData(name="folder", root=root, batch_size=2, frames=4, size=16)
    return VideoDataModule(data, cache=cache)


KINDS = {"image": (picture, images), "audio": (sound, sounds), "video": (video, clips)}


class Failing(io.BufferedReader):
    """A file that cannot be read beyond its first bytes."""

    def __init__(self, file, first):
        super().__init__(file.detach())
        self.first = first

    def read(self, size=-1):
        if self.tell() + max(size, 0) > self.first:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@pytest.fixture(params=KINDS)
def module(request, tmp_path):
    """A function that gives the data module of a folder of five files, set up."""
    write, build = KINDS[request.param]
    (tmp_path / "set" / "one").mkdir(parents=True)
    for i in range(5):
        write(tmp_path / "set" / "one" / str(i))

    def module(cache="cache"):
        data = build(str(tmp_path / "set"), tmp_path / cache)
        data.setup()
        return data

    return module


@pytest.mark.parametrize("first", [0, 300, 2000])
def test_a_file_that_cannot_be_read_once_is_read_the_next_time(module, first, monkeypatch, caplog):
    opened = Path.open

    def failing(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        return Failing(file, first) if path.stem == BAD else file

    with monkeypatch.context() as context:
        context.setattr(Path, "open", failing)
        with pytest.raises(UserError, match="/2[.].* cannot be read now .Input/output error"):
            module()
    assert module().identity == module("another").identity and not caplog.text


@pytest.mark.parametrize("module", ["image", "audio"], indirect=True)  # clips of videos are kept
def test_a_file_that_goes_while_it_is_used_is_one_sentence(module, monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "MEMORY", 0)
    data = module()
    for path in tmp_path.glob("set/one/*"):
        path.unlink()
    with pytest.raises(UserError, match="can no longer be read .No such file.*: put it back"):
        list(data.real("train"))
