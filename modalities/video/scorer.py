"""Classifiers that say whether a clip is what was asked for, and how steady it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from scm_core.contract.fields import Condition
from scm_core.contract.spec import DataModule, Scorer
from scm_core.data.splits import Shown
from scm_core.evaluation import classifier

VERSION = 2  # of the classifiers and their training: others score otherwise
STEPS, EPOCHS, PEAK = 600, 40, 4e-3  # training ends at the first of steps and epochs
SIZE, FRAMES = 32, 16  # what a classifier is shown: larger clips are shrunk, longer ones subsampled


class ClipScorer(Scorer):
    """Scores clips by each label of their condition, 0. or 1., and by their flicker, (B,).

    There is one small classifier for each label, trained once, seeded, on the data module's
    training split and kept under ``cache``; how often it is right about held-out clips is what they
    score. ``flicker`` is the mean absolute change of a pixel from frame to frame, in grey levels:
    real clips have some for they move.
    """

    def __init__(self, data: DataModule, cache: Path = classifier.CACHE) -> None:
        """Load or train the classifiers of a data module that has been set up."""
        self.networks = {}
        for key, field in data.condition.items():
            batches, steps = classifier.training_batches(Shown(data.train_set.split), STEPS, EPOCHS)
            self.networks[key] = classifier.trained(
                partial(Classifier, field.classes),
                ((clips, condition[key]) for clips, condition in batches),
                steps,
                PEAK,
                identity=[VERSION, data.identity, data.statistics, data.shape, key],
                folder=cache,
            )

    @torch.inference_mode()
    def __call__(self, media: Tensor, condition: Condition) -> dict[str, Tensor]:
        """{"class_accuracy", ...: (B,), "flicker": (B,)} of uint8 clips (B, 3, T, H, W)."""
        scores = {}
        for key, network in self.networks.items():
            network.to(media.device)
            seen = torch.cat([network(part).argmax(1) for part in media.split(256)])
            name = "class" if key == "label" else key
            scores[f"{name}_accuracy"] = (seen == condition[key].to(media.device)).float()
        change = media.float().diff(dim=2).abs().flatten(1).mean(1)
        return {**scores, "flicker": change}


class Classifier(nn.Sequential):
    """A small classifier of clips: uint8 (B, 3, T, H, W) -> logits (B, classes).

    All frames are channels of one picture, so that its first layer already sees what moves.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(
            nn.PixelUnshuffle(2),
            classifier.convolution(4 * 3 * FRAMES, 96),
            classifier.convolution(96, 96),
            nn.MaxPool2d(2),
            classifier.convolution(96, 128),
            classifier.convolution(128, 128),
            nn.MaxPool2d(2),
            classifier.convolution(128, 128),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128 * (SIZE // 8) ** 2, classes),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, classes)."""
        x = clips.float() / 127.5 - 1
        x = functional.interpolate(x, (FRAMES, SIZE, SIZE), mode="area")
        return super().forward(x.flatten(1, 2).contiguous(memory_format=torch.channels_last))
