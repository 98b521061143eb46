"""Letters of the fonts that come with Matplotlib: points on their outlines."""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from scm_core.contract.fields import Label
from scm_core.data.batches import InMemory

from glyphs.codec import CloudCodec

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FAMILIES = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cm[brst]*10")
HELD_OUT = 5  # every fifth font


@dataclass
class DataConfig:
    """Clouds of so many `points`, so many `draws` of each letter of each font."""

    points: int = 96
    draws: int = 8
    batch_size: int = 64


def fonts(split):
    """The font files of a split."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(path for family in FAMILIES for path in folder.glob(f"{family}.ttf"))
    files = [path for path in files if "Display" not in path.name and "sy" not in path.name]
    return [path for i, path in enumerate(files) if (i % HELD_OUT == 0) == (split == "test")]


@cache
def outline(letter, font):
    """The lines of a letter's outline, two arrays (lines, 2) of their ends, about 0."""
    path = TextPath((0, 0), letter, size=1, prop=FontProperties(fname=str(font)))
    lines = [np.stack([line[:-1], line[1:]]) for line in path.to_polygons() if len(line) > 1]
    ends = np.concatenate(lines, axis=1)
    return ends - (path.get_extents().min + path.get_extents().max) / 2


def cloud(letter, font, points, random):
    """Points drawn evenly from a letter's outline, (points, 2), in a random order."""
    start, end = outline(letter, font)
    length = np.linalg.norm(end - start, axis=1)
    chosen = random.choice(len(length), points, p=length / length.sum())
    return start[chosen] + random.random((points, 1)) * (end - start)[chosen]


def read(points, draws, split):
    """Clouds, float32 (N, points, 2), and which letter each is."""
    random = np.random.default_rng(["train", "test"].index(split))
    each = [(i, font) for font in fonts(split) for i in range(len(LETTERS)) for _ in range(draws)]
    clouds = np.stack([cloud(LETTERS[i], font, points, random) for i, font in each])
    return torch.from_numpy(clouds).float(), {"letter": torch.tensor([i for i, _ in each])}


def build(config):
    schema = {"letter": Label(len(LETTERS), tuple(LETTERS))}
    return InMemory(
        partial(read, config.points, config.draws), schema, CloudCodec, config.batch_size
    )
