"""What scores sounds: CREPE, the classifiers, and the speech embedding."""

import math
import sys

import pytest
import torch

from modalities.audio import crepe
from modalities.audio import scorer as scoring
from modalities.audio.data import AudioData, AudioDataModule
from modalities.audio.features import SpeechEmbedding
from modalities.audio.mel import MelSettings
from modalities.audio.scorer import NoteScorer, PitchScorer
from scm_core.base.errors import UserError
from scm_core.data.media import write_sound
from scm_core.evaluation import classifier
from scm_core.evaluation.metrics import frechet_distance

RATE = 22_050
SAMPLES = 16_384


def tone(hertz: torch.Tensor, rate: int = RATE, samples: int = SAMPLES) -> torch.Tensor:
    """Five harmonics of each frequency, a little unlike at every place, (B, samples)."""
    time = torch.arange(samples) / rate
    parts = [(2 * math.pi * k * hertz[:, None] * time + k).sin() / k for k in range(1, 6)]
    return 0.3 * sum(parts)


def midi(number: torch.Tensor) -> torch.Tensor:
    return 440 * 2 ** ((number - 69) / 12)


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000])
def test_pitch_is_right_within_half_a_semitone_and_wrong_beyond(rate):
    numbers = torch.arange(40, 81, 4)
    scorer, asked = PitchScorer(rate, lowest=36), {"pitch": numbers - 36}
    for off, right in ((0.0, 1.0), (0.35, 1.0), (-0.35, 1.0), (0.65, 0.0), (-0.65, 0.0)):
        scores = scorer(tone(midi(numbers + off), rate), asked)["pitch_accuracy"]
        assert scores.dtype == torch.float32 and scores.tolist() == [right] * len(numbers)
    assert not scorer(tone(midi(numbers + 12.0), rate), asked)["pitch_accuracy"].any()


def test_a_window_without_a_pitch_hardly_counts():
    sound = tone(torch.tensor([330.0]), crepe.SAMPLE_RATE, 12_000)
    sound[:, 5_000:] = 0.1 * torch.randn(1, 7_000)  # seven of twelve windows are noise
    found = crepe.median_frequency(crepe.Crepe(), sound)
    assert found.item() == pytest.approx(330, rel=0.01)


def test_pitch_of_a_sound_shorter_than_a_window():
    found = crepe.median_frequency(crepe.Crepe(), tone(torch.tensor([500.0]), 16_000, 900))
    assert found.item() == pytest.approx(500, rel=0.02)


@pytest.mark.parametrize("package", ["torchcrepe", "openwakeword", "onnxruntime"])
def test_a_missing_package_is_named_with_its_command(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    build = crepe.Crepe if package == "torchcrepe" else lambda: SpeechEmbedding(RATE)
    with pytest.raises(UserError, match=f"pip install.*{package}"):
        build()


def test_the_embedding_sees_the_sound_and_not_its_rate_or_its_neighbours():
    hertz = torch.tensor([110.0, 220.0, 440.0, 880.0])
    found = SpeechEmbedding(RATE, batch_size=3)(tone(hertz))
    assert found.shape == (4, 96) and found.dtype == torch.float32
    alone = torch.cat([SpeechEmbedding(RATE)(tone(one[None])) for one in hertz])
    assert torch.allclose(found, alone, atol=1e-4)
    resampled = SpeechEmbedding(44_100)(tone(hertz, 44_100, 2 * SAMPLES))
    between = torch.cdist(found, found) + 1e9 * torch.eye(4)
    assert ((resampled - found).norm(dim=1) < 0.3 * between.min(1).values).all()


def test_the_embedding_takes_clips_of_any_length():
    embed, hertz = SpeechEmbedding(16_000), torch.tensor([300.0])
    long = tone(hertz, 16_000, 48_000)
    short = embed(long[:, :4_000])
    assert short.shape == (1, 96) and short.isfinite().all()
    padded = torch.cat([long[:, :4_000], torch.zeros(1, 8_400)], 1)
    assert torch.allclose(short, embed(padded), atol=1e-4)
    changed = long.clone()
    changed[:, 40_000:] = 0.1 * torch.randn(1, 8_000)  # the end counts too
    assert (embed(changed) - embed(long)).norm() > 0.05 * embed(long).norm()


def test_the_distance_grows_with_noise():
    embed = SpeechEmbedding(RATE)
    sounds = tone(midi(36 + 48 * torch.rand(300)))
    one, other = embed(sounds[:150]), sounds[150:]
    distances = [
        frechet_distance(one, embed(other + level * torch.randn_like(other)))
        for level in (0.0, 0.02, 0.2)
    ]
    assert distances[0] < distances[1] < distances[2] and distances[2] > 3 * distances[0]


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """Every preset of the packaged font at four pitches."""
    config = AudioData(batch_size=32, pitch_low=60, pitch_high=63, velocities=1)
    data = AudioDataModule(config, MelSettings(), tmp_path_factory.mktemp("cache"))
    data.setup()
    return data


def test_the_scorer_of_notes_learns_once_and_is_kept(notes, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "STEPS", 60)
    state = torch.get_rng_state()
    scorer = NoteScorer(notes, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    sounds, labels = next(iter(notes.real("test")))
    media, asked = sounds[:16], {key: value[:16] for key, value in labels.items()}
    scores = scorer(media, asked)
    assert set(scores) == {"family_accuracy", "pitch_accuracy"}
    assert all(score.shape == (len(media),) for score in scores.values())
    assert scores["family_accuracy"].mean() > 0.7 and scores["pitch_accuracy"].mean() > 0.7
    wrong = scorer(media, {"family": (asked["family"] + 1) % 16, "pitch": (asked["pitch"] + 1) % 4})
    assert wrong["family_accuracy"].mean() < 0.2 and wrong["pitch_accuracy"].mean() < 0.2
    monkeypatch.setattr(classifier, "train", None)  # the second time there is nothing to train
    again = NoteScorer(notes, tmp_path)(media, asked)
    assert all(torch.equal(again[key], scores[key]) for key in scores)


def test_recordings_are_scored_by_their_class(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "STEPS", 60)
    for i in range(12):
        sounds = {
            "tone": tone(midi(50 + 30 * torch.rand(1)))[0],
            "noise": 0.2 * torch.randn(SAMPLES),
        }
        for name, sound in sounds.items():
            write_sound(sound, tmp_path / "sounds" / name / f"{i}.wav", RATE)
    config = AudioData(name="folder", root=str(tmp_path / "sounds"), batch_size=4)
    data = AudioDataModule(config, MelSettings(), tmp_path / "cache")
    data.setup()
    scorer = NoteScorer(data, tmp_path / "scorers")
    (media, asked), *_ = data.real("train")
    assert scorer(media, asked).keys() == {"class_accuracy"}
    assert scorer(media, asked)["class_accuracy"].mean() > 0.9
    assert scorer(media, {"label": 1 - asked["label"]})["class_accuracy"].mean() < 0.1
