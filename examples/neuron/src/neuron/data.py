"""A neuron's membrane potential, recorded for six seconds, cut into short windows."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib import cbook
from scm_core.contract.fields import Label
from scm_core.data.batches import InMemory

from neuron.codec import WindowCodec

# Where in the recording (12,000 values, one every half millisecond) the neuron fires how.
PARTS = {"regular": (1_400, 7_000), "irregular": (7_200, 10_900)}
HELD_OUT = 0.2  # the end of each part


@dataclass
class DataConfig:
    """Windows of the recording: their `length` in values, and how many make a batch."""

    length: int = 256
    batch_size: int = 64


def read(length, split):
    """Windows, float32 (N, length), and how the neuron fires in each."""
    recording = np.fromfile(cbook.get_sample_data("membrane.dat", asfileobj=False), np.float32)
    windows, labels = [], []
    for label, (start, end) in enumerate(PARTS.values()):
        middle = round(end - HELD_OUT * (end - start))
        first, last = (start, middle) if split == "train" else (middle, end)
        windows.append(torch.from_numpy(recording[first:last]).unfold(0, length, 2))
        labels.append(torch.full((len(windows[-1]),), label))
    return torch.cat(windows), {"firing": torch.cat(labels)}


def build(config):
    schema = {"firing": Label(len(PARTS), tuple(PARTS))}
    return InMemory(partial(read, config.length), schema, WindowCodec, config.batch_size)
