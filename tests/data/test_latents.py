"""Samples that are latents: standardised, decoded again, and never those of another decoder."""

import json
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from scm_core.contract.spec import SIGMA_DATA, Autoencoder, Batch, Codec
from scm_core.data.latents import LatentCodec, Latents


class Folded(Autoencoder):
    """Two values become one latent channel each, scaled and shifted: exactly invertible."""

    def __init__(self, gain: float = 3.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.calls = 0

    def encode(self, x):
        self.calls += 1
        return torch.cat([x[..., ::2] * self.gain + 1, x[..., 1::2] * self.gain - 2], 1)

    def decode(self, z):
        parts = zip(z.chunk(2, 1), (1, -2), strict=True)
        even, odd = ((part - shift) / self.gain for part, shift in parts)
        return torch.stack([even, odd], -1).flatten(-2)


class Lines(torch.utils.data.Dataset):
    def __init__(self, n):
        self.x, self.label = torch.randn(n, 1, 8) * SIGMA_DATA, torch.arange(n) % 3

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        return Batch(self.x[indices], {"label": self.label[indices]})


@dataclass
class Data:
    identity: str = "lines"
    shape: tuple = (1, 8)
    condition: dict = field(default_factory=dict)
    statistics: dict = field(default_factory=lambda: {"source": "lines"})

    def __post_init__(self):
        self.train_set, self.test_set = Lines(300), Lines(20)


class Plain(Codec):
    def encode(self, media):
        return media

    def decode(self, x):
        return x

    def save(self, media, path):
        return path

    def preview(self, media):
        return media

    def seconds(self, media):
        return 1.5


def test_latents_are_standardised_and_decode_to_the_media(tmp_path):
    data, folded = Data(), Folded()
    latents = Latents(data, folded, 100, tmp_path)
    assert latents.shape == (2, 4)
    x = torch.cat([batch.x for batch in latents.train_dataloader()])
    assert x.mean((0, 2)).abs().max() < 0.01
    torch.testing.assert_close(x.std((0, 2)), torch.full((2,), SIGMA_DATA), atol=0.01, rtol=0)
    assert json.loads(json.dumps(latents.statistics))["source"] == "lines"
    decoder = LatentCodec(folded, Plain(), latents.statistics["latents"])
    batch = latents.test_set.__getitems__([3, 5])
    original = data.test_set.__getitems__([3, 5])
    assert torch.equal(batch.condition["label"], original.condition["label"])
    torch.testing.assert_close(decoder.decode(batch.x), original.x, atol=0.02, rtol=0)
    torch.testing.assert_close(decoder.encode(original.x), batch.x, atol=0.02, rtol=0)
    assert not decoder.exact and decoder.seconds(None) == 1.5


def test_latents_by_other_statistics_decode_to_the_same_media(tmp_path):
    data, folded = Data(), Folded()
    latents = Latents(data, folded, 100, tmp_path)
    statistics = json.loads(json.dumps(latents.statistics))
    statistics["latents"] |= {"mean": [0.5, -1.0], "std": [2.0, 4.0]}
    latents.standardise(statistics)
    assert latents.statistics == statistics
    decoder = LatentCodec(folded, Plain(), statistics["latents"])
    original = data.train_set.__getitems__([3, 5])
    x = latents.train_set.__getitems__([3, 5]).x
    torch.testing.assert_close(decoder.decode(x), original.x, atol=0.02, rtol=0)


def test_the_cache_is_of_these_data_and_this_autoencoder(tmp_path):
    data, folded = Data(), Folded()
    Latents(data, folded, 100, tmp_path)
    calls = folded.calls
    again = Latents(data, folded, 100, tmp_path)
    assert calls and folded.calls == calls
    other = Latents(data, Folded(2.0), 100, tmp_path)
    stale = (again.statistics["latents"], other.statistics["latents"])
    assert stale[0]["autoencoder"] != stale[1]["autoencoder"] and stale[0]["std"] != stale[1]["std"]
    data.identity = "other lines"
    Latents(data, folded, 100, tmp_path)
    assert folded.calls > calls
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_damaged_cache_is_made_again(tmp_path, caplog):
    data, folded = Data(), Folded()
    whole = Latents(data, folded, 100, tmp_path).train_set.x
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(Latents(data, folded, 100, tmp_path).train_set.x, whole)
    assert "is made again" in caplog.text


@pytest.mark.parametrize("name", ["decode", "encode"])
def test_a_latent_decoder_keeps_its_autoencoder_still(tmp_path, name):
    data, folded = Data(), Folded()
    latents = Latents(data, folded, 100, tmp_path)
    decoder = LatentCodec(folded, Plain(), latents.statistics["latents"])
    given = torch.randn(1, *(latents.shape if name == "decode" else data.shape))
    assert not getattr(decoder, name)(given).requires_grad
