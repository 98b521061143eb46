import torch
from scm_core.dual.verification import awakened
from scm_core.testing import check_modality

from glyphs import SPEC
from glyphs.backbone import CloudConfig, CloudTransformer
from glyphs.codec import Occupancy
from glyphs.data import LETTERS, fonts, read


def test_the_plugin_keeps_to_the_contract():
    report = check_modality(SPEC, "data.points=48", "backbone.width=64", "backbone.depth=2")
    assert report.ok, str(report)


def test_the_backbone_does_not_know_the_order_of_points():
    network = awakened(CloudTransformer(CloudConfig(32, 2, 2), (2, 20), {}))
    x, t, order = torch.randn(3, 2, 20), torch.rand(3), torch.randperm(20)
    torch.testing.assert_close(network(x[:, :, order], t), network(x, t)[:, :, order])


def test_no_font_is_trained_on_and_held_out():
    train, test = fonts("train"), fonts("test")
    assert len(train) > 10 and len(test) > 2 and not set(train) & set(test)


def test_letters_differ_and_lie_about_the_origin():
    clouds, condition = read(64, 1, "test")
    assert clouds.abs().max() < 0.6
    means = [Occupancy()(clouds)[condition["letter"] == LETTERS.index(c)].mean(0) for c in "IO"]
    assert (means[0] - means[1]).abs().sum() > 0.5
