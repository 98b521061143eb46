"""The data: put your own into `read`."""

from dataclasses import dataclass

import torch
from scm_core.contract.fields import Label
from scm_core.data.batches import InMemory

from newname.codec import Codec

CLASSES, LENGTH = 4, 64


@dataclass
class DataConfig:
    """The data set, and how it is fed."""

    batch_size: int = 64


def read(split):
    """A stand-in, noisy bumps: media, float32 (N, LENGTH), and their classes, int64 (N,)."""
    generator = torch.Generator().manual_seed(["train", "test"].index(split))
    label = torch.arange(2048 if split == "train" else 256) % CLASSES
    centre = (label + torch.rand(len(label), generator=generator)) * LENGTH / CLASSES
    bumps = torch.exp(-((torch.arange(LENGTH) - centre[:, None]) / 3).square())
    return torch.normal(bumps, 0.02, generator=generator), {"label": label}


def build(config):
    return InMemory(read, {"label": Label(CLASSES)}, Codec, config.batch_size)
