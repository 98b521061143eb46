"""The author's way with data: read once, kept on disk, measured as the plugin wants."""

from dataclasses import replace
from functools import partial

import pairs_plugin
import pytest
import torch
from pairs_plugin import SPEC, PairsCodec, read

from scm_core import testing
from scm_core.contract.fields import Vector
from scm_core.data.batches import InMemory, overall
from scm_core.testing import check_modality

SCHEMA = {"place": Vector(2)}


@pytest.fixture
def calls(monkeypatch):
    """The splits that the plugin has read."""
    monkeypatch.setattr(pairs_plugin, "CALLS", [])
    return pairs_plugin.CALLS


def test_setup_reads_once_however_often_it_is_called(calls):
    data = SPEC.build_data(None)
    data.setup()
    data.setup("fit")
    assert calls == ["train", "test"]


def test_what_read_made_is_kept_on_disk(calls, tmp_path):
    def batches(scale):
        reading = partial(read, scale=scale)
        data = InMemory(reading, SCHEMA, PairsCodec, 8, kept_as={"scale": scale}, cache=tmp_path)
        data.setup()
        return [tensor for x, given in data.val_dataloader() for tensor in (x, given["place"])]

    first, again = batches(1), batches(1)
    assert calls == ["train", "test"]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    batches(2)
    assert calls == ["train", "test"] * 2


def test_each_channel_or_the_plugin_itself_sets_the_scale():
    data = SPEC.build_data(None)
    data.setup()
    x = data.sets["train"].x
    torch.testing.assert_close(x.mean((0, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2)), torch.full((2,), 0.5))
    own = InMemory(read, SCHEMA, PairsCodec, 8, lambda media: {"mean": [0, 100], "std": [1, 10]})
    own.setup()
    assert own.statistics == {"mean": [0, 100], "std": [1, 10]}
    assert overall(torch.tensor([1.0, 3.0]))["mean"] == 2


DATA = (testing.statistics, testing.seed, testing.global_generator, testing.pickling)


def test_the_check_reads_the_data_once(calls, monkeypatch):
    monkeypatch.setattr(testing, "CHECKS", DATA)
    report = check_modality(SPEC)
    assert report.ok, str(report)
    assert calls == ["train", "test"]


def test_a_slow_read_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(testing, "CHECKS", (testing.statistics,))
    assert "took" not in str(check_modality(SPEC))
    monkeypatch.setattr("scm_core.testing.data.SLOW", 0)
    assert "reading the data took 0 s" in (said := str(check_modality(SPEC)))
    assert "InMemory(kept_as=" in said


def test_data_that_draw_globally_are_read_again_and_found(calls, monkeypatch):
    def drawing(split):
        media, condition = read(split)
        return media + 0.01 * torch.randn(media.shape), condition

    monkeypatch.setattr(testing, "CHECKS", (testing.global_generator,))
    drawn = replace(SPEC, build_data=lambda config: InMemory(drawing, SCHEMA, PairsCodec, 8))
    assert check_modality(drawn).failed() == ["global generator"]
