"""A classifier trained on real images, which says whether a generated one shows its class."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import lightning
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from modalities.image.decoder import ImageDecoder
from scm_core.conditioning import Condition
from scm_core.errors import UserError
from scm_core.modality import Batch

CACHE = Path.home() / ".cache" / "scm-core" / "judges"
VERSION = 1  # of the network and its training: another one is another judge
STEPS, EPOCHS, PEAK = 1600, 40, 4e-3  # training ends at the first of steps and epochs
SIZE = 32  # pixels: larger images are shrunk to this, which keeps the training to minutes


class ClassJudge:
    """Scores images by the class that they should show: {"class_accuracy": 0. or 1., (B,)}.

    The classifier is trained on first use of a data set, seeded, on the data module's training
    split as decoded images, and kept under ``cache``; media are uint8 (B, C, H, W).
    """

    def __init__(self, data: lightning.LightningDataModule, cache: Path = CACHE) -> None:
        """Load or train the classifier of a data module that has been set up."""
        classes = data.condition["label"].classes
        identity = [VERSION, data.statistics, data.shape, classes]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        path = cache / f"{key}.safetensors"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = Classifier(data.shape[0], classes)
            if path.exists():
                self.network.load_state_dict(load_file(path))
            else:
                _train(self.network, _decoded(data), len(data.train_dataloader()))
                _save(self.network, path)
        self.network.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, media: Tensor, condition: Condition) -> dict[str, Tensor]:
        """Per-sample scores, float32 (B,): 1 where the classifier sees ``condition["label"]``."""
        self.network.to(media.device)
        seen = torch.cat([self.network(chunk).argmax(1) for chunk in media.split(256)])
        return {"class_accuracy": (seen == condition["label"].to(media.device)).float()}


class Classifier(nn.Sequential):
    """A small convolutional classifier: uint8 (B, C, H, W) -> logits (B, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        """Convolutions at a half, a quarter and an eighth of the images' size."""
        super().__init__(
            nn.PixelUnshuffle(2),
            _convolution(4 * channels, 48),
            _convolution(48, 48),
            nn.MaxPool2d(2),
            _convolution(48, 96),
            _convolution(96, 96),
            nn.MaxPool2d(2),
            _convolution(96, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128, classes),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        x = images.float() / 127.5 - 1
        if max(x.shape[-2:]) > SIZE:
            x = functional.interpolate(x, (SIZE, SIZE), mode="area")
        x = functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        return super().forward(x.contiguous(memory_format=torch.channels_last))


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _decoded(data: lightning.LightningDataModule) -> Iterator[Batch]:
    """Training batches without end, x as uint8 images: what the judge will be shown."""
    decoder = ImageDecoder(data.statistics)
    while True:
        for batch in data.train_dataloader():
            yield Batch(decoder.decode(batch.x), batch.condition)


def _train(network: Classifier, batches: Iterator[Batch], epoch: int) -> None:
    """Train on ``batches``, ``epoch`` of which show every image once."""
    steps = min(STEPS, EPOCHS * epoch)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK, steps)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).train()
    fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    for _ in track(range(steps), "training the judge", transient=True):
        images, condition = next(batches)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            logits = network(images.to(device))
        loss = functional.cross_entropy(logits.float(), condition["label"].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.cpu()


def _save(network: Classifier, path: Path) -> None:
    """Write whole or not at all, so that an interrupted write is never read."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, part)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
