"""Any folder of recordings: formats, classes, clips, and files that cannot be used."""

import logging
import shutil
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from sounds import NOTES, RATE, encode, pitch, prepared, tone
from torch import Tensor
from torch.nn import functional

from modalities.audio import recordings
from modalities.audio.mel import MelSettings, log_mel
from modalities.audio.recordings import decode_file, gain_to, speech_commands
from scm_core.base.errors import UserError
from scm_core.data.media import write_sound


def folder(tmp_path: Path, **config):
    """The data module of the folder ``set``."""
    root = str(tmp_path / "set")
    return prepared(tmp_path / "cache", name="folder", root=root, **{"batch_size": 4, **config})


def many_channels(path: Path, sound: Tensor, channels: int) -> Path:
    """A 16-bit WAV with the sound in its first channel and silence in the others."""
    samples = np.zeros((len(sound), channels), "<i2")
    samples[:, 0] = (sound * 32767).numpy()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture
def notes(tmp_path) -> Path:
    """Five real notes each of a flute and a trumpet."""
    return Path(shutil.copytree(NOTES, tmp_path / "set"))


@pytest.mark.parametrize(
    ("name", "codec", "rate", "layout"),
    [
        ("a.wav", "pcm_s16le", 22050, "mono"),
        ("a.wav", "pcm_u8", 8000, "mono"),
        ("a.wav", "pcm_s24le", 48000, "stereo"),
        ("a.wav", "pcm_f32le", 11111, "mono"),
        ("a.flac", "flac", 96000, "stereo"),
        ("a.mp3", "libmp3lame", 44100, "stereo"),
        ("a.ogg", "libopus", 48000, "stereo"),
        ("a.m4a", "aac", 44100, "mono"),
    ],
)
def test_a_file_sounds_the_same_whatever_its_format(tmp_path, name, codec, rate, layout):
    sound = decode_file(NOTES / "trumpet" / "60.flac", RATE)
    decoded = decode_file(encode(tmp_path / name, sound, codec, rate, layout), RATE)
    assert decoded.dtype == torch.float32 and -512 < len(decoded) - len(sound) < 4096
    ours, theirs = (part.square().mean().sqrt() for part in (decoded, sound))
    assert abs(pitch(decoded[4096:12288]) - 60) < 0.1
    assert 0.6 < ours / theirs < 1.1  # mono to stereo costs 3 dB


@pytest.mark.parametrize(("suffix", "codec"), [("mp3", "libmp3lame"), ("aac", "aac")])
def test_a_rate_that_changes_on_the_way_is_followed(tmp_path, suffix, codec):
    """As where streams were put together; each part keeps its length and its pitch."""
    parts = [
        encode(tmp_path / f"{rate}.{suffix}", tone(seconds=2.0), codec, rate, layout)
        for rate, layout in ((44_100, "mono"), (22_050, "stereo"))
    ]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    sound = decode_file(path, RATE)
    assert abs(len(sound) / RATE - 4) < 0.3
    assert all(abs(pitch(sound[at : at + 8192]) - 69) < 0.1 for at in (8_000, len(sound) - 16_000))


@pytest.mark.parametrize("channels", [2, 5, 12])
def test_any_number_of_channels_is_averaged(tmp_path, channels):
    decoded = decode_file(many_channels(tmp_path / "a.wav", tone(), channels), RATE)
    assert (decoded - tone() / channels).abs().max() < 1e-4


def test_a_folder_gives_its_classes_clips_and_real_sounds(notes, tmp_path):
    data = folder(tmp_path, normalise="none", licence="MIT")
    assert data.condition["label"].names == ("flute", "trumpet") and data.shape == (1, 80, 64)
    assert (len(data.train_set), len(data.test_set)) == (8, 2)
    assert data.statistics["source"] == "set" and data.statistics["licence"] == "MIT"
    sounds, condition = next(data.real("test"))
    batch = next(iter(data.val_dataloader()))
    assert condition["label"].tolist() == batch.condition["label"].tolist() == [0, 1]
    truth = [decode_file(path, RATE) for path in sorted(notes.glob("*/*.flac"))]
    assert all(any(torch.equal(sound, true) for true in truth) for sound in sounds)
    mean, std = (torch.tensor(data.statistics[key])[:, None] for key in ("mean", "std"))
    expected = (log_mel(sounds, MelSettings()) - mean) / std * 0.5
    assert (batch.x[:, 0] - expected).abs().max() < 0.02
    x = torch.cat([batch.x for batch in data.train_dataloader()])
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 0.5) < 1e-2


def test_long_files_give_several_clips_and_short_ones_are_padded(notes, tmp_path):
    samples = 64 * 256
    sound = tone(seconds=3.4 * samples / RATE)
    for name, seconds in (("long", 3.4), ("longer", 3.6), ("short", 0.2)):
        part = tone(seconds=seconds * samples / RATE)
        write_sound(part, notes / "flute" / f"{name}.wav", RATE)
    data = folder(tmp_path, normalise="none")
    assert len(data.train_set) + len(data.test_set) == 10 + 3 + 4 + 1
    clips = data.train_set.split.clips
    names = [clips.paths[i].stem for i in clips.file]
    found = clips.waveforms(torch.arange(len(names)))
    (short,) = found[[name == "short" for name in names]]
    assert short[round(0.2 * samples) :].eq(0).all() and short[:3000].abs().max() > 0.4
    long = found[[name == "long" for name in names]].flatten()
    assert (long - sound[: 3 * samples]).abs().max() < 1e-4


def test_a_file_is_decoded_once_for_all_of_its_clips_in_a_batch(tmp_path, monkeypatch):
    for i in range(2):
        write_sound(0.3 * torch.randn(5 * 16384 // 2), tmp_path / "set" / f"{i}.wav", RATE)
    data = folder(tmp_path, normalise="none", batch_size=1)
    clips, decoded = data.splits[0].clips, []
    assert clips.file.tolist() == [0, 0, 0, 1, 1, 1]  # the last one is half full
    real = recordings.decode_file
    monkeypatch.setattr(
        recordings, "decode_file", lambda path, *how: decoded.append(path) or real(path, *how)
    )
    chosen = torch.tensor([5, 0, 2, 3])
    found = clips.waveforms(chosen)
    assert len(decoded) == 2
    sounds = [functional.pad(real(path, RATE), (0, 8192)).view(3, -1) for path in clips.paths]
    assert torch.equal(found, torch.cat(sounds)[chosen])


@pytest.mark.parametrize("level", [0.01, 0.1, 0.9])
def test_loudness_and_peak_are_made_equal(level):
    quiet, steady = level * tone(seconds=2.0), level * tone(seconds=0.15)
    loud = gain_to("loudness", quiet, RATE) * quiet
    assert abs(torchaudio.functional.loudness(loud[None], RATE) + 20) < 0.1
    assert abs(gain_to("peak", steady, RATE) * steady.abs().max() - 0.95) < 1e-4
    assert (gain_to("loudness", steady, RATE) * steady).abs().max() < 0.951
    assert gain_to("none", steady, RATE) == 1 and gain_to("none", 100 * quiet, RATE) < 2 / level


def test_a_name_pattern_gives_the_classes(notes, tmp_path):
    for path in list(notes.glob("*/*.flac")):
        path.rename(notes / f"{path.parent.name}_{path.stem}.flac")
    (notes / "other.flac").write_bytes(b"")
    data = folder(tmp_path, pattern=r"^([a-z]+)_\d+[.]")
    assert data.condition["label"].names == ("flute", "trumpet")
    assert len(data.train_set) + len(data.test_set) == 10
    for wrong, sentence in (("(", "not a regular"), ("flute", "one group"), ("(oboe)", "no rec")):
        with pytest.raises(UserError, match=sentence):
            folder(tmp_path, pattern=wrong)


def test_train_and_test_folders_are_the_splits(notes, tmp_path):
    for path in list(notes.glob("*/*.flac")):
        part = "test" if path.stem in ("60", "64") else "train"
        (notes / part / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(notes / part / path.parent.name / path.name)
    data = folder(tmp_path)
    assert (len(data.train_set), len(data.test_set)) == (6, 4)


def test_speech_commands_are_split_by_their_own_list(notes, tmp_path):
    root = tmp_path / "set"
    for path in list(notes.glob("*/*.flac")):
        write_sound(decode_file(path, 16000), path.with_suffix(".wav"), 16000)
    (root / "_background_noise_").mkdir()
    write_sound(tone(), root / "_background_noise_" / "hum.wav", RATE)
    (root / "testing_list.txt").write_text("flute/60.wav\ntrumpet/72.wav\ntrumpet/60.wav\n")
    data = prepared(tmp_path / "cache", name="speech_commands", root=str(root), batch_size=4)
    assert data.condition["label"].names == ("flute", "trumpet")
    assert (len(data.train_set), len(data.test_set)) == (7, 3)


def test_speech_commands_that_were_not_unpacked_to_their_end_are_unpacked_again(
    notes, tmp_path, monkeypatch
):
    (notes / "testing_list.txt").write_text("flute/60.wav\n")
    for path in list(notes.glob("*/*.flac")):
        write_sound(decode_file(path, 16000), path.with_suffix(".wav"), 16000)
    home, unpack = tmp_path / "home", tarfile.TarFile.extract
    home.mkdir()
    with tarfile.open(home / "speech_commands_v0.02.tar.gz", "w:gz") as archive:
        for path in sorted(notes.rglob("*.*"), reverse=True):
            archive.add(path, path.relative_to(notes).as_posix())

    def interrupted(archive, member, *rest):
        if member.name.startswith("flute"):
            raise KeyboardInterrupt
        return unpack(archive, member, *rest)

    monkeypatch.setattr(tarfile.TarFile, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        speech_commands(str(home))
    monkeypatch.setattr(tarfile.TarFile, "extract", unpack)
    _, classes, _ = speech_commands(str(home))
    assert {name: len(files) for name, files in classes.items()} == {"flute": 5, "trumpet": 5}


def test_silent_short_and_cut_files_are_named(notes, tmp_path, caplog):
    write_sound(torch.zeros(RATE), notes / "flute" / "silent.wav", RATE)
    write_sound(tone(seconds=0.05), notes / "flute" / "blip.wav", RATE)
    for name, codec in (("cut.mp3", "libmp3lame"), ("cut.flac", "flac")):
        path = encode(notes / "trumpet" / name, tone(seconds=2.0), codec, 44100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        data = folder(tmp_path, normalise="peak")
    assert "silent.wav: it is silent" in caplog.text and "blip.wav: 0.05 s are too" in caplog.text
    assert "skipped 2 of 14 recordings" in caplog.text and "cut.flac is used up to" in caplog.text
    clips = data.train_set.split.clips
    cut = [i for i, file in enumerate(clips.file) if clips.paths[file].stem == "cut"]
    sounds = clips.waveforms(torch.tensor(cut))
    assert len(cut) in (2, 3) and all(abs(pitch(part[2000:12000]) - 69) < 0.1 for part in sounds)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        folder(tmp_path, normalise="peak")
    assert "silent.wav: it is silent" in caplog.text  # read from the cache, and said again


def test_broken_files_stop_with_their_list(notes, tmp_path):
    (notes / "flute" / "text.wav").write_text("no sound at all\n" * 100)
    (notes / "flute" / "empty.mp3").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match="2 of 12 .*: flute/empty.mp3, flute/text.wav"):
            folder(tmp_path)


def test_a_changed_folder_is_read_again(notes, tmp_path):
    before = folder(tmp_path)
    (notes / "flute" / "60.flac").unlink()
    shutil.copy(notes / "trumpet" / "60.flac", notes / "flute" / "61.flac")
    shutil.copy(notes / "trumpet" / "60.flac", notes / "flute" / "62.flac")
    after = folder(tmp_path)
    sizes = [len(data.train_set) + len(data.test_set) for data in (before, after)]
    assert sizes == [10, 11]


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / "set" / "notes").mkdir(parents=True)
    with pytest.raises(UserError, match="no recording .of .*wav"):
        folder(tmp_path)
    write_sound(torch.zeros(RATE), tmp_path / "set" / "notes" / "silent.wav", RATE)
    with pytest.raises(UserError, match="no recording that can be used"):
        folder(tmp_path)
    write_sound(tone(), tmp_path / "set" / "loose.wav", RATE)
    with pytest.raises(UserError, match="beside class folders .loose.wav"):
        folder(tmp_path)
    with pytest.raises(UserError, match="data.normalise=louder is none of"):
        folder(tmp_path, normalise="louder")
    with pytest.raises(UserError, match="is not a folder"):
        prepared(tmp_path, name="folder", root=str(tmp_path / "missing"))
    with pytest.raises(UserError, match="needs the folder"):
        prepared(tmp_path, name="folder")
