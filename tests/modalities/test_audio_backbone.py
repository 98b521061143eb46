"""The network of notes: shown the harmonics it is asked for, differentiable, of any length."""

import torch
from sounds import RATE

from modalities.audio import backbone
from modalities.audio.mel import MelSettings, log_mel
from scm_core import dual
from scm_core.contract.fields import Label
from scm_core.networks.backbones import BackboneConfig

MEL = MelSettings()
SHAPE = (1, MEL.mels, 16)
SCHEMA = {"family": Label(16), "pitch": Label(37, first=48)}


def network(schema=SCHEMA):
    """A small network whose output does not start at zero."""
    built = backbone.build(BackboneConfig("unet", "tiny", 4), MEL, SHAPE, schema)
    for parameter in built.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return built.double()


def sawtooth(number):
    """Half a second of a note with every harmonic."""
    phase = torch.arange(RATE // 2) / RATE * 440 * 2 ** ((number - 69) / 12)
    return (2 * (phase % 1) - 1) * 0.5


def test_the_harmonics_are_where_a_note_has_them():
    """Of all pitches' harmonics those of a note's own pitch resemble its spectrum most."""
    table = backbone.harmonics(MEL, SCHEMA["pitch"])
    assert table.shape == (38, MEL.mels) and not table[-1].any()
    for number in (48, 55, 60, 67, 72, 84):
        heard = log_mel(sawtooth(number)[None], MEL)[0].mean(1)
        heard = (heard - heard.mean()) / heard.std()
        assert (table @ heard).argmax() == number - 48


def test_other_pitches_and_none_at_all_give_other_outputs():
    built = network()
    x, t = torch.randn(3, *SHAPE, dtype=torch.float64), torch.full((3,), 1.5, dtype=torch.float64)
    given = {"family": torch.full((3,), 16), "pitch": torch.tensor([0, 36, 37])}
    out = built(x, t, given)
    assert out.shape == x.shape
    assert not torch.allclose(out[:2], built(x, t)[:2]) and torch.equal(out[2:], built(x, t)[2:])


def test_the_tangent_is_that_of_finite_differences():
    built, t = network(), torch.tensor([0.4, 1.5], dtype=torch.float64)
    x, dx = torch.randn(2, 2, *SHAPE, dtype=torch.float64)
    given = {"family": torch.tensor([3, 16]), "pitch": torch.tensor([12, 37])}
    F, dF = dual.jvp(built, (x, t), (dx, torch.ones_like(t)), condition=given)
    h = 1e-5
    ahead, behind = (built(x + s * h * dx, t + s * h, given) for s in (1, -1))
    assert torch.allclose(F, built(x, t, given))
    assert torch.allclose(dF, (ahead - behind) / (2 * h), atol=1e-6)


def test_clips_may_be_longer_than_in_training():
    assert (
        network()(torch.randn(1, 1, MEL.mels, 40).double(), torch.ones(1).double()).shape[-1] == 40
    )


def test_recordings_have_the_network_of_the_core():
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    built = network({"label": Label(3)})
    assert (
        not isinstance(built, backbone.Harmonics)
        and built(x, torch.ones(2).double()).shape == x.shape
    )
