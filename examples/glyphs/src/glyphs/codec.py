"""Between samples x, float32 (B, 2, points), and clouds of points, float32 (B, points, 2)."""

from pathlib import Path

import torch
from scm_core.contract.spec import SIGMA_DATA, Codec, Features, Scorer
from scm_core.data import media

SIDE, CELLS = 56, 10  # pixels of a preview, cells of the grid that features are counted in


class CloudCodec(Codec):
    """One scale for both directions, or letters would come out squeezed."""

    def __init__(self, statistics):
        self.mean, self.scale = statistics["mean"], statistics["std"] / SIGMA_DATA

    def encode(self, clouds):
        return ((clouds - self.mean) / self.scale).transpose(1, 2)

    def decode(self, x):
        return x.transpose(1, 2) * self.scale + self.mean

    def save(self, cloud, path):
        media.write_png(self.preview(cloud[None]), f"{path}.png")
        table = Path(f"{path}.csv")
        table.write_text("".join(f"{x:.4f},{y:.4f}\n" for x, y in cloud.tolist()))
        return table

    def preview(self, clouds):
        return media.image_grid(255 - (255 * (counts(clouds, SIDE) > 0)).to(torch.uint8)[:, None])


def counts(clouds, side):
    """How many points lie in each cell of a square of `side` cells, (B, side, side), top first."""
    down = clouds * clouds.new_tensor([1, -1])
    cells = ((down + 0.55) / 1.1 * side).long().clamp(0, side - 1)
    flat = cells[..., 1] * side + cells[..., 0]
    empty = clouds.new_zeros(len(clouds), side * side)
    return empty.scatter_add(1, flat, clouds.new_ones(flat.shape)).unflatten(1, (side, side))


class Occupancy(Features):
    """What distances are measured in: the share of points in each of 10 by 10 cells."""

    name = "occupancy"

    def __call__(self, clouds):
        return counts(clouds, CELLS).flatten(1) / clouds.shape[1]


class NearestLetter(Scorer):
    """Whether a cloud is nearest to the mean of the letter that was asked for."""

    def __init__(self, data):
        clouds, condition = data.media["train"]
        seen, letter = Occupancy()(clouds), condition["letter"]
        self.means = torch.stack([seen[letter == i].mean(0) for i in range(int(letter.max()) + 1)])

    def __call__(self, clouds, condition):
        nearest = torch.cdist(Occupancy()(clouds), self.means.to(clouds.device)).argmin(1)
        return {"letter_accuracy": (nearest == condition["letter"]).float()}
