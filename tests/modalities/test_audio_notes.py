"""Notes of a soundfont: labels, sound, split, cache, and fonts that are none."""

import logging
import struct

import pytest
import torch
from sounds import pitch, prepared

from modalities.audio.data import AudioData
from modalities.audio.mel import MelSettings, log_mel
from modalities.audio.notes import FAMILIES, Notes, find_font, font_origin, held_out_pairs
from scm_core.base.errors import UserError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder that the tests of this file share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def notes(cache) -> Notes:
    """Four pitches of every preset at two velocities."""
    config = AudioData(pitch_low=60, pitch_high=63, velocities=2)
    return Notes(config, MelSettings(), cache / "notes")


def test_every_family_and_pitch_is_labelled(notes):
    assert notes.schema["family"].names == FAMILIES and len(FAMILIES) == 16
    assert notes.schema["pitch"].parse("60") == 0 and notes.schema["pitch"].classes == 4
    assert len(notes.log_mels) > 0.98 * 128 * 4 * 2 and notes.log_mels.shape[1:] == (80, 64)
    assert notes.labels["family"].bincount().min() > 60  # of 8 presets x 4 pitches x 2
    assert notes.labels["pitch"].bincount(minlength=4).min() > 250
    with pytest.raises(UserError, match="give 60 to 63"):
        notes.schema["pitch"].parse("64")


def test_a_note_has_the_pitch_that_its_label_says(notes):
    families = ("piano", "strings", "brass", "reed", "pipe")
    for name in families:
        chosen = torch.nonzero(notes.labels["family"] == FAMILIES.index(name))[:, 0]
        asked = notes.labels["pitch"][chosen] + 60
        heard = torch.tensor([pitch(sound[4096:12288]) for sound in notes.waveforms(chosen)])
        off = (heard - asked + 6) % 12 - 6  # some presets sound an octave away
        assert (off.abs() < 0.5).float().mean() > 0.85, name


def test_a_waveform_is_the_one_that_the_log_mels_were_made_of(notes):
    chosen = torch.randperm(len(notes.log_mels))[:64]
    sounds = notes.waveforms(chosen)
    assert sounds.shape == (64, 64 * 256) and 0.01 < sounds.abs().amax(1).min()
    assert sounds.abs().max() <= 0.951 and sounds[:, -1].abs().max() < 1e-4  # faded out
    gap = log_mel(sounds, MelSettings()) - notes.log_mels[chosen]
    assert gap.abs().max() < 0.01  # float16


def test_held_out_notes_were_never_heard_at_any_velocity(notes):
    programs, pitches = notes.table["program"].tolist(), notes.table["pitch"].tolist()
    pairs = list(zip(programs, pitches, strict=True))
    held = {pair for pair, out in zip(pairs, notes.held_out, strict=True) if out}
    heard = {pair for pair, out in zip(pairs, notes.held_out, strict=True) if not out}
    assert not held & heard and abs(len(held) / len(held | heard) - 0.1) < 0.01
    assert {program // 8 for program, _ in heard} == set(range(16))
    assert {number for _, number in heard} == {60, 61, 62, 63}


def test_the_last_note_of_a_family_or_pitch_is_not_held_out():
    pairs = {(0, 60), (0, 61), (8, 61), (16, 62), (16, 60)}
    assert len(held_out_pairs(pairs)) == 1
    for _ in range(2):
        assert held_out_pairs(pairs) <= {(0, 60), (0, 61), (16, 60)}
    with pytest.raises(UserError, match="too few notes"):
        held_out_pairs({(0, 60), (8, 61)})


def test_silent_notes_are_dropped(cache):
    config = AudioData(pitch_low=84, pitch_high=84, velocities=1)
    found = Notes(config, MelSettings(), cache / "notes").table["program"].tolist()
    assert 67 not in found and 78 not in found and {0, 40, 73} <= set(found)  # silent in this font


def test_a_second_start_reads_the_cache_and_mends_a_damaged_one(notes, tmp_path, caplog):
    config = AudioData(pitch_low=60, pitch_high=60, velocities=1)
    first = Notes(config, MelSettings(), tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = Notes(config, MelSettings(), tmp_path)
    assert file.stat().st_mtime_ns == written and torch.equal(first.log_mels, again.log_mels)
    file.write_bytes(file.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        mended = Notes(config, MelSettings(), tmp_path)
    assert "is made again" in caplog.text and torch.equal(first.log_mels, mended.log_mels)
    other = Notes(AudioData(pitch_low=60, pitch_high=60, velocities=2), MelSettings(), tmp_path)
    assert len(other.log_mels) > 1.9 * len(first.log_mels)


def test_batches_are_standardised_and_real_sounds_go_with_them(cache):
    data = prepared(cache, pitch_low=60, pitch_high=63, velocities=2, batch_size=50)
    assert data.shape == (1, 80, 64) and data.statistics["mel"]["hop"] == 256
    assert data.statistics["source"] == "TimGM6mb" and data.statistics["licence"] == "GPL-2.0"
    x = torch.cat([batch.x for batch in data.train_dataloader()])
    assert abs(x.mean()) < 0.02 and abs(x.std() - 0.5) < 0.02
    assert (x.std((0, 1, 3)) - 0.5).abs().max() < 0.03
    held = list(data.val_dataloader())
    sounds, condition = next(data.real("test"))
    assert torch.equal(condition["pitch"], held[0].condition["pitch"]) and len(sounds) == 50
    one, two = (next(data.real("train"))[1]["family"] for _ in range(2))
    assert torch.equal(one, two) and len(one.unique()) > 8


def test_a_licence_is_what_the_user_says_or_the_font_states(tmp_path):
    info = b"".join(
        name + struct.pack("<I", len(text)) + text
        for name, text in ((b"INAM", b"Tiny\0\0"), (b"ICOP", b"CC0\0"))
    )
    chunk = b"LIST" + struct.pack("<I", len(info) + 4) + b"INFO" + info
    font = tmp_path / "tiny.sf2"
    font.write_bytes(b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"sfbk" + chunk)
    assert font_origin(font, None) == {"source": "Tiny", "licence": "CC0"}
    assert font_origin(font, "MIT") == {"source": "Tiny", "licence": "MIT"}
    with pytest.raises(UserError, match="tiny.sf2 is not a soundfont"):
        prepared(tmp_path, font=str(font))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"font": "missing.sf2"}, "data.font=missing.sf2 is not a file"),
        ({"pitch_high": 128}, "data.pitch_high=128 must rise within 0 to 127"),
        ({"pitch_low": 85}, "data.pitch_low=85"),
        ({"velocities": 0}, "data.velocities=0 must be 1 to 127"),
        ({"name": "note"}, "data.name=note is none of notes, folder"),
        ({"root": "mine"}, "data.root= is of recordings: data.name=folder goes with it"),
        ({"pattern": "(a)"}, "data.pattern= is of recordings"),
        ({"frames": 0}, "data.frames=0 must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(tmp_path, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        prepared(tmp_path, **wrong)


def test_a_batch_larger_than_the_training_split_is_refused(cache):
    with pytest.raises(UserError, match="clips, fewer than data.batch_size=2000"):
        prepared(cache, pitch_low=60, pitch_high=63, velocities=2, batch_size=2000)


def test_the_default_font_is_the_packaged_one():
    assert find_font(None).name == "TimGM6mb.sf2" and find_font(None).is_file()
