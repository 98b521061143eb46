"""Moving garments: Fashion-MNIST's, bouncing before a coloured background, composed on the fly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from modalities.common.fashion_mnist import NAMES as GARMENTS
from modalities.common.fashion_mnist import read_fashion_mnist
from modalities.common.sets import LabelledImages
from modalities.video.settings import VideoData
from scm_core.contract.fields import Condition, Label, Schema
from scm_core.data.splits import Split

VERSION = 1  # of the composition: another one makes other clips
DIRECTIONS = (
    "right",
    "down-right",
    "down",
    "down-left",
    "left",
    "up-left",
    "up",
    "up-right",
)
SHARE = 0.5  # of a frame's side that a garment is wide and high
SPEEDS = (0.03, 0.05)  # of a frame's side that it moves from one frame to the next
HELD_OUT = 0.1  # as many held-out clips as this share of the training clips


class Sprites(Split):
    """Clips uint8 (B, 3, T, H, W), each the same whenever it is asked for.

    A clip shows a garment that starts in the asked direction and bounces off the frame's edges.
    Training clips show training garments, held-out clips garments of the test split. Where a clip
    starts, it can move on for about half of the frame.
    """

    schema: Schema = {
        "label": Label(len(GARMENTS), GARMENTS),
        "direction": Label(len(DIRECTIONS), DIRECTIONS),
    }

    def __init__(self, garments: LabelledImages, config: VideoData, held_out: bool) -> None:
        """Draw the parameters of all clips of a split from ``garments``, by ``config.seed``."""
        self.frames, self.size = config.frames, config.size
        side = max(1, round(SHARE * self.size))
        images = garments.images[torch.arange(len(garments.images))].float() / 255
        self.garments = functional.interpolate(
            images, (side, side), mode="bilinear", antialias=True
        )
        n = max(1, round(HELD_OUT * config.clips)) if held_out else config.clips
        generator = torch.Generator().manual_seed(2 * config.seed + held_out)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(n, *shape, generator=generator)

        self.chosen = torch.randint(len(images), (n,), generator=generator)
        self.direction = torch.randint(len(DIRECTIONS), (n,), generator=generator)
        angle = self.direction * (2 * math.pi / len(DIRECTIONS))
        towards = torch.stack([angle.cos(), angle.sin()], 1).round(decimals=3)
        speed = SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * uniform(1)
        self.velocity = towards * speed * self.size  # pixels a frame, (n, 2): right and down
        self.room = float(self.size - side)
        half = uniform(2) / 2
        start = torch.where(towards > 0, half, torch.where(towards < 0, 1 - half, uniform(2)))
        self.start = start * self.room
        self.tint = 0.6 + 0.4 * uniform(3)
        self.background = 0.5 * uniform(2, 3)  # colours at two opposite edges
        self.upright = uniform() < 0.5  # whether these are above and below
        self.label = garments.labels[self.chosen]

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.chosen)

    def condition(self, chosen: Tensor) -> Condition:
        """What these clips show and where it goes."""
        return {"label": self.label[chosen], "direction": self.direction[chosen]}

    def media(self, chosen: Tensor) -> Tensor:
        """These clips, uint8 (B, 3, T, H, W)."""
        time = torch.arange(self.frames, dtype=torch.float32)
        path = self.start[chosen, None] + self.velocity[chosen, None] * time[:, None]
        place = self.room - (path % (2 * self.room) - self.room).abs()  # off the edges, (B, T, 2)
        garments = self._moved(self.garments[self.chosen[chosen]], place)
        behind = self._background(chosen)[:, :, None]
        frames = garments * self.tint[chosen, :, None, None, None]
        opaque = garments.mul_(4).clamp_(max=1)
        # In place: to fill fresh memory would take most of the time.
        frames.sub_(behind).mul_(opaque).add_(behind)
        return frames.mul_(255).round_().to(torch.uint8)

    def _moved(self, garments: Tensor, place: Tensor) -> Tensor:
        """Garments (B, 1, S, S) at places (B, T, 2) in pixels: (B, 1, T, H, W), 0 elsewhere."""
        batch, frames, _ = place.shape
        side = garments.shape[-1]
        pixel = torch.arange(self.size, dtype=torch.float32)
        along = (pixel - place[..., None] + 0.5) * (2 / side) - 1  # (B, T, 2, size), in [-1, 1]
        x, y = along.flatten(0, 1).unbind(1)
        grid = torch.stack(
            [x[:, None].expand(-1, self.size, -1), y[:, :, None].expand(-1, -1, self.size)], -1
        )
        repeated = garments.repeat_interleave(frames, 0)
        moved = functional.grid_sample(repeated, grid, align_corners=False)
        return moved.view(batch, 1, frames, self.size, self.size)

    def _background(self, chosen: Tensor) -> Tensor:
        """A smooth change from one colour to another, (B, 3, H, W)."""
        ramp = torch.linspace(0, 1, self.size)
        first, last = self.background[chosen, :, :, None].unbind(1)
        colours = first + (last - first) * ramp
        down, across = (
            colours.unsqueeze(axis).expand(-1, -1, self.size, self.size) for axis in (3, 2)
        )
        return torch.where(self.upright[chosen, None, None, None], down, across)


def read_sprites(config: VideoData) -> tuple[Sprites, Sprites, dict[str, Any]]:
    """Training clips, held-out clips, and all that they depend on."""
    train, test, _ = read_fashion_mnist(config.root, None)
    keys = ("frames", "size", "clips", "seed")
    identity = {"sprites": VERSION, **{key: getattr(config, key) for key in keys}}
    identity["garments"] = [train.identity, test.identity]
    return Sprites(train, config, False), Sprites(test, config, True), identity
