"""A classifier trained on real images, which says whether a generated one shows its class."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalities.image.codec import ImageCodec
from scm_core.contract.fields import Condition
from scm_core.contract.spec import DataModule, Features, Scorer
from scm_core.evaluation import classifier

VERSION = 2  # of the network and its training: another one scores otherwise
STEPS, EPOCHS, PEAK = 1600, 40, 4e-3  # training ends at the first of steps and epochs
SIZE = 32  # pixels: larger images are shrunk to this, which keeps the training to minutes


class ClassScorer(Scorer):
    """Scores images by the class that they should show: {"class_accuracy": 0. or 1., (B,)}.

    The classifier is trained on first use of a data set, seeded, on the data module's training
    split as decoded images, and kept under ``cache``; media are uint8 (B, C, H, W). What it sees in
    them before it decides are features that this modality's extractors had no part in.
    """

    def __init__(self, data: DataModule, cache: Path = classifier.CACHE) -> None:
        """Load or train the classifier of a data module that has been set up."""
        classes, codec = data.condition["label"].classes, ImageCodec(data.statistics)
        batches, steps = classifier.training_batches(data.train_set, STEPS, EPOCHS)
        self.network = classifier.trained(
            lambda: Classifier(data.shape[0], classes),
            ((codec.decode(x), condition["label"]) for x, condition in batches),
            steps,
            PEAK,
            identity=[VERSION, data.identity, data.statistics, data.shape, classes],
            folder=cache,
        )
        self.features = (Penultimate(self.network),)

    @torch.inference_mode()
    def __call__(self, media: Tensor, condition: Condition) -> dict[str, Tensor]:
        """Per-sample scores, float32 (B,): 1 where the classifier sees ``condition["label"]``."""
        self.network.to(media.device)
        seen = torch.cat([self.network(chunk).argmax(1) for chunk in media.split(256)])
        return {"class_accuracy": (seen == condition["label"].to(media.device)).float()}


class Penultimate(Features):
    """What the classifier sees before it decides: uint8 (B, C, H, W) -> (B, 128), float32."""

    name = "class_scorer"

    def __init__(self, network: Classifier) -> None:
        """Of a trained classifier."""
        self.network = network

    @torch.inference_mode()
    def __call__(self, media: Tensor) -> Tensor:
        """Features float32 (B, 128)."""
        self.network.to(media.device)
        return torch.cat([self.network.penultimate(chunk) for chunk in media.split(256)])


class Classifier(nn.Sequential):
    """A small convolutional classifier: uint8 (B, C, H, W) -> logits (B, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        """Convolutions at a half, a quarter and an eighth of the images' size."""
        super().__init__(
            nn.PixelUnshuffle(2),
            classifier.convolution(4 * channels, 48),
            classifier.convolution(48, 48),
            nn.MaxPool2d(2),
            classifier.convolution(48, 96),
            classifier.convolution(96, 96),
            nn.MaxPool2d(2),
            classifier.convolution(96, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128, classes),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return super().forward(_prepared(images))

    def penultimate(self, images: Tensor) -> Tensor:
        """What the last linear layer is given, (B, 128)."""
        x = _prepared(images)
        for layer in list(self)[:-2]:  # without dropout and that layer
            x = layer(x)
        return x


def _prepared(images: Tensor) -> Tensor:
    x = images.float() / 127.5 - 1
    if max(x.shape[-2:]) > SIZE:
        x = functional.interpolate(x, (SIZE, SIZE), mode="area")
    x = functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
    return x.contiguous(memory_format=torch.channels_last)
