import torch
from scm_core.testing import check_modality

from neuron import SPEC
from neuron.codec import Spikes
from neuron.data import read


def test_the_plugin_keeps_to_the_contract():
    report = check_modality(SPEC)
    assert report.ok, str(report)


def test_held_out_windows_share_no_value_with_the_training_windows():
    (train, _), (test, _) = (read(256, split) for split in ("train", "test"))
    assert len(train) > 1000 and len(test) > 100
    assert not (train[:, None, :8] == test[None, ::50, :8]).all(-1).any()


def test_spikes_are_counted():
    window = torch.full((1, 32), -0.5)
    window[0, [4, 5, 20]] = 0.0
    assert Spikes()(window, {})["spikes"].tolist() == [2.0]
