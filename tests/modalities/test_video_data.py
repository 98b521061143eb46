"""Moving garments: the same every time, going where they are asked to, standardised."""

import math

import pytest
import torch

from modalities.video.data import VideoData, VideoDataModule
from modalities.video.sprites import DIRECTIONS
from scm_core.base.errors import UserError

TOWARDS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}


def prepared(fashion_root: str, **config) -> VideoDataModule:
    data = VideoDataModule(VideoData(root=fashion_root, clips=200, batch_size=50, **config))
    data.setup()
    return data


def travelled(clips: torch.Tensor, frames: int = 5) -> torch.Tensor:
    """How far what is not background moves over the first frames, (B, 2): right and down.

    The background is what a pixel shows in most frames.
    """
    values = clips.float()
    moving = (values - values.median(2, keepdim=True).values).abs().sum(1)
    moving = moving * (moving > 30)
    pixel = torch.arange(clips.shape[-1]).float()
    weight = moving.sum((2, 3)).clamp(min=1)
    x, y = (moving.sum(axis) @ pixel / weight for axis in (2, 3))
    return torch.stack([x[:, frames] - x[:, 0], y[:, frames] - y[:, 0]], 1)


def test_a_clip_is_the_same_whenever_it_is_asked_for(fashion_root):
    first, second = prepared(fashion_root), prepared(fashion_root)
    alone = first.train_set.__getitems__([7]).x
    among = second.train_set.__getitems__([3, 7, 11]).x[1:2]
    torch.testing.assert_close(alone, among)
    assert first.identity == second.identity
    other = prepared(fashion_root, seed=1)
    assert other.identity != first.identity
    assert not torch.equal(other.train_set.__getitems__([7]).x, alone)


def test_garments_go_where_they_are_asked_to(fashion_root):
    data = prepared(fashion_root, size=64)
    clips, condition = next(data.real("test"))
    assert clips.shape == (20, 3, 16, 64, 64) and clips.dtype == torch.uint8
    batches = list(data.real("train"))
    moved = torch.cat([travelled(clips) for clips, _ in batches])
    directions = torch.cat([condition["direction"] for _, condition in batches])
    for name, (right, down) in TOWARDS.items():
        there = moved[directions == DIRECTIONS.index(name)]
        assert len(there) > 2
        along = there @ torch.tensor([right, down]).float()
        assert along.median() > 5  # of 64 pixels, in five frames


def test_samples_have_the_scale_that_the_core_expects(fashion_root):
    data = prepared(fashion_root)
    x = torch.cat([batch.x for batch in data.train_dataloader()])
    assert data.shape == (3, 16, 32, 32)
    assert x.mean().abs() < 0.02 and 0.48 < x.std() < 0.52
    assert {key: field.classes for key, field in data.condition.items()} == {
        "label": 10,
        "direction": 8,
    }


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"name": "films"}, "is none of sprites"),
        ({"fps": 0}, "must be above 0"),
        ({"fps": math.nan}, "must be above 0"),
        ({"frames": 0}, "data.frames=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_said(wrong, said):
    with pytest.raises(UserError, match=said):
        VideoDataModule(VideoData(**wrong))
