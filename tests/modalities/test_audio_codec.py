"""From log-mels to sound and to files: Griffin-Lim, HiFi-GAN's format, clipping, mismatches."""

import json
import wave
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from sounds import NOTES, RATE, pitch
from torch import Tensor
from torch.nn.utils import weight_norm

from modalities.audio import SPEC
from modalities.audio.codec import AudioCodec
from modalities.audio.mel import MelSettings, log_mel
from modalities.audio.recordings import decode_file
from modalities.audio.vocoder import DecoderConfig, Generator, build
from scm_core.base.errors import UserError
from scm_core.engine import config as configuration

TINY = {
    "resblock": "1",
    "upsample_rates": [8, 8, 2, 2],
    "upsample_kernel_sizes": [16, 16, 4, 4],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "sampling_rate": 22050,
    "n_fft": 1024,
    "hop_size": 256,
    "num_mels": 80,
    "fmin": 0,
    "fmax": 8000,
}


def decoder(mel: MelSettings | None = None, **config) -> AudioCodec:
    """A decoder with statistics like those of the notes."""
    mel = mel or MelSettings()
    statistics = {"mean": [-6.0] * mel.mels, "std": [2.5] * mel.mels, "mel": asdict(mel)}
    return AudioCodec(DecoderConfig(**config), mel, statistics)


def generator(folder: Path, **changed) -> tuple[Path, Generator]:
    """An untrained generator in the published format, and the network that it was written from."""
    config = TINY | changed
    network = Generator(config).eval()
    normed = [
        m for m in network.modules() if isinstance(m, (torch.nn.Conv1d, torch.nn.ConvTranspose1d))
    ]
    for module in normed:
        torch.nn.init.normal_(weight_norm(module).weight_g, 1.3, 0.1)
    torch.save({"generator": network.state_dict()}, folder / "g_1")
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "g_1", network


@pytest.fixture(scope="module")
def notes() -> Tensor:
    """Ten real notes, (10, 16384)."""
    return torch.stack([decode_file(path, RATE) for path in sorted(NOTES.glob("*/*.flac"))])


def test_griffin_lim_brings_real_notes_back_in_place_and_in_tune(notes):
    found = decoder()
    x = found.encode(notes)
    assert x.shape == (10, 1, 80, 64) and x.dtype == torch.float32 and not found.exact
    again = found.decode(x)
    assert again.shape == notes.shape and again.dtype == torch.float32 and again.abs().max() <= 1
    heard = torch.tensor([pitch(sound[4096:12288]) for sound in again])
    asked = torch.tensor([60.0, 64, 67, 72, 76] * 2)
    assert (heard - asked).abs().max() < 0.3
    gap = log_mel(again, MelSettings()) - log_mel(notes, MelSettings())
    assert gap.abs().mean() < 0.3
    spectra = [
        torch.stft(sound, 1024, 256, window=torch.hann_window(1024), return_complex=True).abs()
        for sound in (notes, again)
    ]
    assert (spectra[0] - spectra[1]).norm() / spectra[0].norm() < 0.35
    assert (again[3] - found.decode(x[3:4])[0]).abs().max() < 0.01  # whoever else is in the batch


def test_a_click_comes_back_where_it_was():
    sound = torch.zeros(1, 16384)
    sound[0, 9000] = 0.9
    found = decoder(iterations=16)
    assert abs(int(found.decode(found.encode(sound)).abs().argmax()) - 9000) < 128


def test_more_iterations_agree_better(notes):
    mels = log_mel(notes, MelSettings())
    errors = []
    for iterations in (1, 8, 32):
        vocoder = build(DecoderConfig(iterations=iterations), MelSettings())
        errors.append((log_mel(vocoder(mels), MelSettings()) - mels).abs().mean())
    assert errors[0] > errors[1] > errors[2]


def test_nothing_clips(notes, tmp_path):
    found = decoder()
    loud = found.decode(found.encode(notes[:2]) + 1.0)  # e^5 times as loud
    assert loud.abs().amax(1).sub(1).abs().max() < 1e-6
    assert (loud.abs() > 0.999).float().mean() < 1e-3  # made quieter, not cut off
    path = found.save(3 * notes[0], tmp_path / "loud")
    samples = read_wav(path)
    expected = notes[0] / notes[0].abs().max() * 32767
    assert np.abs(samples - expected.numpy()).max() <= 1


def read_wav(path: Path) -> np.ndarray:
    """The 16-bit mono samples of a WAV at `RATE`."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_a_clip_is_saved_as_wav_flac_and_picture(notes, tmp_path):
    path = decoder().save(notes[0], tmp_path / "out" / "00000")
    assert path == tmp_path / "out" / "00000.wav"
    assert sorted(p.name for p in path.parent.iterdir()) == ["00000.flac", "00000.png", "00000.wav"]
    samples = read_wav(path)
    assert np.abs(samples - notes[0].numpy() * 32767).max() < 0.51
    with av.open(str(path.with_suffix(".flac"))) as flac:
        assert flac.streams.audio[0].rate == RATE and flac.streams.audio[0].format.name == "s16"
        decoded = np.concatenate([f.to_ndarray()[0] for f in flac.decode(audio=0)])
    assert np.array_equal(decoded, samples)
    picture = np.asarray(Image.open(path.with_suffix(".png")))
    assert picture.shape == (80, 64, 3)
    low, high = picture[60:, 5:40].mean(), picture[:20, 5:40].mean()
    assert low > high + 20  # low notes are at the bottom and bright


def test_a_preview_shows_all_clips(notes):
    picture = decoder().preview(notes)
    assert picture.dtype == torch.uint8 and picture.shape[2] == 3
    assert picture.shape[0] > 3 * 80 and picture.shape[1] > 4 * 64


def test_a_full_disk_is_one_sentence(notes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        decoder().save(notes[0], tmp_path / "file" / "00000")


@pytest.mark.parametrize("kind", ["1", "2"])
def test_a_hifigan_of_the_published_format_is_loaded(notes, tmp_path, kind):
    path, network = generator(tmp_path, resblock=kind)
    mels = log_mel(notes[:3], MelSettings())
    for vocoder in ("hifigan", "auto"):
        loaded = build(DecoderConfig(vocoder=vocoder, weights=str(path)), MelSettings())
        assert loaded.name == "hifigan"
        with torch.no_grad():
            expected = network(mels)
        found = loaded(mels)
        assert found.shape == (3, 16384) and found.dtype == torch.float32
        assert expected.std() > 0.01 and found.abs().max() <= 1
        likeness = torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]
        assert likeness > 0.995 and abs(found.std() / expected.std() - 1) < 0.05  # maybe bfloat16


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"fmax": 11025}, r"mel.high=11025 \(here 8000\): change"),
        ({"sampling_rate": 24000, "hop_size": 300}, "mel.sample_rate=24000 .*mel.hop=300"),
    ],
)
def test_a_vocoder_of_other_mels_is_refused(tmp_path, changed, sentence):
    path, _ = generator(tmp_path, **changed)
    for vocoder in ("hifigan", "auto"):
        with pytest.raises(UserError, match=sentence):
            decoder(vocoder=vocoder, weights=str(path))


def test_auto_is_griffin_lim_for_mels_that_no_weights_fit(notes):
    mel = MelSettings(sample_rate=16000, n_fft=512, hop=128, mels=64, high=7600.0)
    found = decoder(mel, vocoder="auto")
    assert found.vocoder.name == "griffin_lim"
    assert found.decode(found.encode(notes[:1])).shape == (1, 16384)


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_weights_that_are_none_are_refused_and_nothing_in_them_runs(tmp_path):
    path, network = generator(tmp_path)
    torch.save({"generator": Evil(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match="g_1 is not a HiFi-GAN generator"):
        decoder(vocoder="hifigan", weights=str(path))
    assert not (tmp_path / "ran").exists()
    for content in (b"no weights", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="g_1 is not a HiFi-GAN generator"):
            decoder(vocoder="hifigan", weights=str(path))
    torch.save({"generator": {"conv_pre.weight": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match="g_1 is not a HiFi-GAN generator"):
        decoder(vocoder="hifigan", weights=str(path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json does not describe"):
        decoder(vocoder="hifigan", weights=str(path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="needs its config.json"):
        decoder(vocoder="hifigan", weights=str(path))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"vocoder": "wavenet"}, "decoder.vocoder=wavenet is none of auto, griffin_lim"),
        ({"iterations": 0}, "decoder.iterations=0 must be at least 1"),
        ({"weights": "missing.pth"}, "decoder.weights=missing.pth is not a file"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        decoder(**wrong)


def test_a_model_of_other_mels_is_refused():
    statistics = {"mean": [0.0] * 80, "std": [1.0] * 80, "mel": asdict(MelSettings())}
    with pytest.raises(UserError, match="was trained on mels with .*hop=256.*: give mel"):
        AudioCodec(DecoderConfig(), MelSettings(hop=128), statistics)


@pytest.mark.parametrize("preset", ["smoke", "demo", "cpu", "gpu", "speech"])
def test_every_preset_merges_and_builds_a_network(preset):
    spec, config = configuration.load(["modality=modalities.audio:SPEC", f"preset={preset}"])
    assert spec is SPEC and config.mel.hop == 256
    shape = (1, config.mel.mels, config.data.frames)
    with torch.device("meta"):
        network = spec.backbone(config, shape, {}, {})
    assert sum(parameter.numel() for parameter in network.parameters()) > 100_000
