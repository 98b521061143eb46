"""Any folder of video files: rates, rotation, clips, and files that cannot be used."""

import math
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from modalities.video.data import VideoData, VideoDataModule
from modalities.video.folder import read_folder, read_frames
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.data.media import write_gif, write_sound, write_video


def ramp(frames: int, size: int = 32) -> torch.Tensor:
    """A clip (3, T, H, W) whose frames grow brighter, eight grey levels each."""
    levels = (8 * torch.arange(frames)).to(torch.uint8)
    return levels[None, :, None, None].expand(3, frames, size, size).contiguous()


def levels(frames: torch.Tensor) -> list[int]:
    return [round(level) for level in (frames.float().mean((1, 2, 3)) / 8).tolist()]


def settings(root, **config) -> VideoData:
    return VideoData(name="folder", root=str(root), **{"frames": 4, "size": 16, **config})


@pytest.fixture
def folder(tmp_path):
    """Two classes of three videos of 24 frames."""
    for name in ("dark", "light"):
        for i in range(3):
            clip = ramp(24) // 2 if name == "dark" else 255 - ramp(24) // 2
            write_video(clip, tmp_path / "set" / name / f"{i}.mp4", 8)
    return tmp_path / "set"


@pytest.mark.parametrize("lossless", [False, True])
def test_a_written_video_reads_back(tmp_path, lossless):
    path = write_video(ramp(16), tmp_path / "clip.mp4", 8, lossless)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (16, 8)
        assert stream.codec_context.format.name == ("gbrp" if lossless else "yuv420p")
    frames = read_frames(path, 8, 32)
    assert levels(frames) == list(range(16))
    if lossless:
        assert torch.equal(frames, ramp(16).transpose(0, 1))


@pytest.mark.parametrize("fps", [5, 8, 30])
def test_a_gif_has_every_frame_and_the_rate(tmp_path, fps):
    path = write_gif(ramp(16), tmp_path / "clip.gif", fps)
    assert levels(read_frames(path, fps, 32)) == list(range(16))


@pytest.mark.parametrize(
    "fps, shown", [(8, range(16)), (4, range(0, 16, 2)), (16, [i // 2 for i in range(32)])]
)
def test_other_rates_show_what_a_player_would(tmp_path, fps, shown):
    path = write_video(ramp(16), tmp_path / "clip.mp4", 8)
    assert levels(read_frames(path, fps, 32)) == list(shown)


@pytest.mark.parametrize("rate, fps, step", [(30, 15, 2), (60, 15, 4), (24, 8, 3), (30, 10, 3)])
def test_a_whole_ratio_of_rates_takes_every_nth_frame(tmp_path, rate, fps, step):
    path = write_video(ramp(24), tmp_path / "clip.mp4", rate)
    assert levels(read_frames(path, fps, 32)) == list(range(0, 24, step))


def variable(path, *times):
    """A file whose frames, each eight greys brighter, have these times in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height = stream.width = 32
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = 0
        for picture, time in zip(ramp(len(times)).permute(1, 2, 3, 0), times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture.numpy(), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_variable_rate_is_followed(tmp_path):
    """Frame 1 is shown for a second, the others for a tenth."""
    path = variable(tmp_path / "clip.mkv", 0, 100, 1100, 1200)
    assert levels(read_frames(path, 10, 32)) == [0] + 10 * [1] + [2, 3]


def test_a_time_that_two_frames_have_delays_no_later_one(tmp_path):
    """After a long gap, as in what a screen or a telephone records."""
    path = variable(tmp_path / "clip.mkv", 0, 100, 1100, 1100, 1200, 1300, 1400, 1400, 1500)
    found = levels(read_frames(path, 10, 32))
    assert found[:11] == [0] + 10 * [1] and found[-1] == 8 and len(found) in (16, 17)
    path = variable(tmp_path / "pairs.mkv", *(200 * (i // 2) for i in range(8)))
    assert levels(read_frames(path, 10, 32)) == list(range(8))


def broadcast(path, *parts):
    """MPEG-TS of parts one after the other: the times of a part's frames, which all show a level.

    Levels are 0, 1, 2 and so on, of eight greys each."""
    for level, times in enumerate(parts):
        with av.open(str(path.with_suffix(f".{level}.ts")), "w") as container:
            stream = container.add_stream("libx264", rate=8, options={"bf": "2"})
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 8)
            picture = np.full((32, 32, 3), 8 * level, np.uint8)
            for time in times:
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = round(8 * time), Fraction(1, 8)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    whole = [path.with_suffix(f".{i}.ts").read_bytes() for i in range(len(parts))]
    path.write_bytes(b"".join(whole))
    return path


@pytest.mark.parametrize("begins", [[3600, 50_000], [0, 0], [900, 0]])
def test_a_clock_that_jumps_takes_no_time(tmp_path, begins):
    """As in broadcasts that were cut, and in files that were put together; forwards and back."""
    parts = [[begin + i / 8 for i in range(24)] for begin in (0, *begins)]
    found = levels(read_frames(broadcast(tmp_path / "a.ts", *parts), 8, 32))
    assert [found.count(level) for level in range(3)] == [24, 24, 24] and found == sorted(found)


def test_a_slow_slide_show_takes_its_time(tmp_path):
    path = broadcast(tmp_path / "a.ts", [0, 5, 10, 15])
    assert len(read_frames(path, 2, 32)) == 40


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_an_avi_may_store_frames_out_of_order(tmp_path, codec):
    """It has no times of B-frames: they follow one another at the file's rate."""
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options={"bf": "2", "qmax": "2"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for picture in ramp(16).permute(1, 2, 3, 0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.numpy(), "rgb24")))
        container.mux(stream.encode(None))
    found = levels(read_frames(path, 8, 32))
    assert sorted(set(found)) == list(range(16)) and found == sorted(found)
    assert len(found) in (16, 17)  # the first B-frame's time may be another's


def test_a_rotated_video_is_upright(tmp_path):
    """What a telephone writes when it is held upright: its matrix turns the picture clockwise."""
    clip = torch.zeros(3, 4, 32, 32, dtype=torch.uint8)
    clip[..., :16] = 200  # the left half, which is shown above
    path = write_video(clip, tmp_path / "clip.mp4", 8)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    turned = (0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", *turned)
    path.write_bytes(content)
    shown = read_frames(path, 8, 32).float()
    assert shown[:, :, :14].mean() > 180 and shown[:, :, 18:].mean() < 20


def test_pixels_that_are_no_squares(tmp_path):
    """32 x 64 pixels, each twice as wide as high, are a square picture: nothing is cut off."""
    path = tmp_path / "clip.mp4"
    picture = np.zeros((64, 32, 3), np.uint8)
    picture[:8] = picture[-8:] = 200
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    shown = read_frames(path, 8, 32).float()
    assert shown.shape == (4, 3, 32, 32)
    assert shown[:, :, :3].mean() > 150 and shown[:, :, -3:].mean() > 150


def test_a_folder_gives_clips_and_holds_whole_files_out(folder, tmp_path):
    train, test, _ = read_folder(settings(folder), tmp_path / "cache", Limits())
    assert (len(train), len(test)) == (4 * 6, 2 * 6)  # one of three files a class, 6 clips each
    assert train.schema["label"].names == ("dark", "light")
    clips = train.media(torch.arange(len(train)))
    assert clips.shape == (24, 3, 4, 16, 16) and clips.dtype == torch.uint8
    bright = clips.float().mean((1, 2, 3, 4)) > 127
    assert torch.equal(bright.long(), train.condition(torch.arange(24))["label"])
    assert all(
        b - a > 0 for a, b in zip(levels(clips[0].transpose(0, 1)), [1, 2, 3, 4], strict=True)
    )
    closer, _, _ = read_folder(settings(folder, stride=2), tmp_path / "cache", Limits())
    assert len(closer) == 4 * 11


def test_broken_files_are_named_and_short_ones_skipped(folder, tmp_path, caplog):
    write_video(ramp(3), folder / "dark" / "short.mp4", 8)
    whole = (folder / "dark" / "0.mp4").read_bytes()
    (folder / "dark" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_sound(torch.zeros(22050), tmp_path / "sound.wav", 22050)
    (folder / "light" / "sound.mp4").write_bytes((tmp_path / "sound.wav").read_bytes())
    with pytest.raises(UserError, match="2 of 9 videos are broken") as caught:
        read_folder(settings(folder), tmp_path / "cache", Limits())
    assert "dark/cut.mp4" in str(caught.value) and "light/sound.mp4" in str(caught.value)
    assert "it has no pictures" in caplog.text
    (folder / "dark" / "cut.mp4").unlink()
    (folder / "light" / "sound.mp4").unlink()
    train, test, _ = read_folder(settings(folder), tmp_path / "cache", Limits())
    assert "short.mp4: 3 frames are too few for 4" in caplog.text
    assert len(train) + len(test) == 36


def test_a_stream_that_breaks_off_is_used_up_to_there(tmp_path, caplog):
    noise = torch.randint(0, 256, (3, 60, 32, 32), generator=torch.Generator().manual_seed(0))
    path = write_video(noise.to(torch.uint8), tmp_path / "whole.mp4", 8)
    with av.open(str(path)) as given, av.open(str(tmp_path / "whole.mkv"), "w") as taken:
        stream = taken.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                taken.mux(packet)
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    assert 10 < len(read_frames(tmp_path / "cut.mkv", 8, 32)) < 60


def test_pictures_are_upright_squares(tmp_path):
    wide = torch.zeros(3, 4, 32, 64, dtype=torch.uint8)
    wide[..., 16:48] = 200  # what the centre square shows
    frames = read_frames(write_video(wide, tmp_path / "wide.mp4", 8), 8, 16)
    assert frames.shape == (4, 3, 16, 16)
    assert frames.float().mean() > 180


def test_no_folder_and_too_few_files(tmp_path):
    for config, said in (
        (VideoData(name="folder"), "needs the folder of videos"),
        (settings(tmp_path), "has no video"),
    ):
        with pytest.raises(UserError, match=said):
            VideoDataModule(config).setup()
    write_video(ramp(8), tmp_path / "alone.mp4", 8)
    with pytest.raises(UserError, match="too few videos"):
        read_folder(settings(tmp_path), tmp_path / "cache", Limits())


def test_frames_come_in_the_order_of_time(tmp_path):
    """B-frames are stored out of order; ten and more frames would sort as 1, 10, 2 by name."""
    path = write_video(ramp(25), tmp_path / "clip.mp4", 25)
    assert levels(read_frames(path, 25, 32)) == list(range(25))
    assert math.isclose(np.mean(levels(read_frames(path, 25, 32))), 12)


def test_ucf101_has_its_own_lists(tmp_path):
    """Laid out as torchvision wants it: the first fold's lists say what is held out."""
    for name, lists in (("Archery", "train"), ("Archery", "test"), ("Bowling", "train")):
        group = {"train": "g08", "test": "g01"}[lists]
        path = tmp_path / "UCF-101" / name / f"v_{name}_{group}_c01"
        write_video(ramp(8), path.with_suffix(".mp4"), 25).rename(path.with_suffix(".avi"))
        listed = tmp_path / "ucfTrainTestlist" / f"{lists}list01.txt"
        listed.parent.mkdir(exist_ok=True)
        with listed.open("a") as file:
            file.write(f"{name}/{path.name}.avi" + (" 1\n" if lists == "train" else "\n"))
    config = settings(tmp_path, fps=25)
    config.name, config.batch_size = "ucf101", 2
    data = VideoDataModule(config)
    data.setup()
    assert data.condition["label"].names == ("Archery", "Bowling")
    assert (len(data.train_set), len(data.test_set)) == (4, 2)
    assert data.test_set.split.condition(torch.arange(2))["label"].tolist() == [0, 0]
    (tmp_path / "UCF-101" / "Bowling" / "v_Bowling_g08_c01.avi").unlink()
    with pytest.raises(UserError, match="v_Bowling_g08_c01.avi, which is not there"):
        VideoDataModule(config).setup()
    config.root = str(tmp_path / "UCF-101")
    with pytest.raises(UserError, match="no list of UCF101"):
        VideoDataModule(config).setup()
