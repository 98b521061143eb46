"""Captions of recordings and of videos: each clip has its file's."""

import json

import pytest
import texts
import torch
from sounds import RATE, tone

from modalities.audio.data import AudioData, AudioDataModule
from modalities.audio.mel import MelSettings
from modalities.common.text import TextEncoder
from modalities.video.data import VideoData, VideoDataModule
from scm_core.base.errors import UserError
from scm_core.data.media import write_sound, write_video

pytest.importorskip("transformers")


@pytest.fixture
def encoder(tmp_path):
    return TextEncoder(str(texts.bert(tmp_path / "bert")), "data.text_encoder")


def sounds(folder):
    """Recordings of two clips each, of one tone or another, in subfolders."""
    for i in range(6):
        path = folder / ("one", "other")[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sound(tone((220.0, 880.0)[i % 2], 1.5), path, RATE)
        path.with_suffix(".txt").write_text(("a large heart", "a small star")[i % 2])
    return folder


def clips(folder):
    """Videos of two clips each, dark or light, and a table."""
    folder.mkdir()
    rows = []
    for i in range(6):
        clip = torch.full((3, 8, 16, 16), (30, 220)[i % 2], dtype=torch.uint8)
        write_video(clip, folder / f"{i}.mp4", 8)
        rows.append({"file_name": f"{i}.mp4", "text": ("a black square", "a white square")[i % 2]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_each_clip_of_a_recording_has_its_caption(tmp_path, encoder):
    config = AudioData(root=str(sounds(tmp_path / "set")), batch_size=2, frames=64)
    data = AudioDataModule(config, MelSettings(), tmp_path / "cache", encoder=encoder)
    data.setup()
    field, split = data.condition["prompt"], data.train_set.split
    assert list(data.condition) == ["prompt"] and len(split) + len(data.test_set) == 12
    assert encoder.identity in json.dumps(data.identity)
    chosen = torch.arange(len(split))
    for sound, value in zip(split.media(chosen), split.condition(chosen)["prompt"], strict=True):
        crossings = (sound[1:].sign() != sound[:-1].sign()).sum() / 2 / (len(sound) / RATE)
        said = "a large heart" if crossings < 500 else "a small star"
        assert torch.equal(value, field.parse(said))


def test_each_clip_of_a_video_has_its_caption(tmp_path, encoder):
    config = VideoData(root=str(clips(tmp_path / "set")), batch_size=2, frames=4, size=16)
    data = VideoDataModule(config, cache=tmp_path / "cache", encoder=encoder)
    data.setup()
    field, split = data.condition["prompt"], data.train_set.split
    assert list(data.condition) == ["prompt"] and len(split) + len(data.test_set) == 12
    chosen = torch.arange(len(split))
    for clip, value in zip(split.media(chosen), split.condition(chosen)["prompt"], strict=True):
        said = "a black square" if clip.float().mean() < 128 else "a white square"
        assert torch.equal(value, field.parse(said))
    held_out = data.test_set.split.condition(torch.tensor([0]))["prompt"][0]
    assert field.show(held_out) in ("a black square", "a white square")


def test_a_recording_without_a_caption_is_a_sentence(tmp_path, encoder):
    (sounds(tmp_path / "set") / "one" / "2.txt").unlink()
    config = AudioData(root=str(tmp_path / "set"), batch_size=2)
    data = AudioDataModule(config, MelSettings(), tmp_path / "cache", encoder=encoder)
    with pytest.raises(UserError, match=r"1 of 6 recordings have no caption, .*2\.wav"):
        data.setup()
