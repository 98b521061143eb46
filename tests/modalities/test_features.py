"""The judges in which nothing is learnt, and the one that a classifier brings."""

import math

import pytest
import torch
from torch.nn import functional

from modalities.audio.features import LogMelStatistics
from modalities.audio.mel import MelSettings
from modalities.image.features import PatchProjections
from modalities.image.scorer import Classifier, Penultimate
from modalities.video.features import PixelsMotionEdges
from scm_core.evaluation.metrics import frechet_distance


def pictures(n, seed, size=28):
    """Bright discs anywhere, uint8 (n, 1, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, 2, 1, 1, generator=generator) * size
    grid = torch.stack(torch.meshgrid(*[torch.arange(size)] * 2, indexing="ij"))
    near = (grid - centre).square().sum(1) < (size / 4) ** 2
    return (200 * near).to(torch.uint8)[:, None]


def grainy(images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    return (images + 12 * noise).clamp(0, 255).to(torch.uint8)


def blurred(images):
    return functional.avg_pool2d(images.float(), 3, 1, 1).to(torch.uint8)


def halved(images):
    return images[:, :, :14].repeat(1, 1, 2, 1)


@pytest.mark.parametrize("spoilt", [grainy, blurred, halved])
def test_patches_tell_what_is_spoilt_from_what_is_new(spoilt):
    features = PatchProjections()
    real, new, bad = (
        features(x) for x in (pictures(400, 1), pictures(400, 2), spoilt(pictures(400, 2)))
    )
    part = slice(64 * 3) if spoilt is halved else slice(64 * 3, None)  # shapes, or bands
    floor = frechet_distance(real[:, part], new[:, part])
    assert frechet_distance(real[:, part], bad[:, part]) > 3 * floor


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 47), (4, 5, 64)])
def test_patches_of_images_of_any_size(shape):
    images = torch.randint(256, (3, *shape), dtype=torch.uint8)
    found = PatchProjections()(images)
    assert found.shape == (3, 384) and found.dtype == torch.float32
    assert torch.equal(found, PatchProjections()(images))


def test_mel_statistics_know_level_and_change():
    noise = 0.1 * torch.randn(16384, generator=torch.Generator().manual_seed(0))
    gate = (torch.arange(16384) // 2048 % 2).float()
    waves = torch.stack([0 * noise, noise, 0.1 * noise, gate * noise])
    silent, loud, soft, gated = LogMelStatistics(MelSettings())(waves).view(4, 3, 80)
    assert silent.abs().max() < 1e-3
    # A tenth of the magnitude, over ln 1e5, in every band; how it moves is the same.
    expected = torch.full((80,), math.log(10) / math.log(1e5))
    assert torch.allclose(loud[0] - soft[0], expected, rtol=0.02)
    assert torch.allclose(loud[1:], soft[1:], atol=0.01)
    assert (gated[1] > 2 * loud[1]).all()  # std over time


def test_motion_sees_disorder_and_standstill():
    frames = pictures(1, 3)[0].expand(3, 28, 28)
    moving = torch.stack([frames.roll(i, 2) for i in range(16)], 1)[None]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    features = PixelsMotionEdges()
    found = features(torch.cat([moving, moving[:, :, order], moving[:, :, :1].expand_as(moving)]))
    pixels, motion, edges = found[:, :192], found[:, 192:256].sum(1), found[:, 256:]
    assert torch.allclose(pixels[0], pixels[1], atol=1e-5)
    assert torch.allclose(edges[0], edges[1], atol=1e-5)
    assert motion[2] == 0 and motion[1] > 2 * motion[0]


def test_a_classifiers_features_are_what_its_decision_is_made_of():
    network = Classifier(1, 7).eval().requires_grad_(False)
    images = torch.randint(256, (5, 1, 28, 28), dtype=torch.uint8)
    found = Penultimate(network)(images)
    assert found.shape == (5, 128)
    assert torch.allclose(network[-1](found), network(images), atol=1e-5)
