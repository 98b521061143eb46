"""Does the data pipeline keep up? Samples per second of the loader over those a student step uses.

    python benchmarks/data_pipeline.py [data.root]

The student is a small transformer (1.2 M parameters, 81 MFLOP an image), cheaper and so hungrier
than the plugin's tiny U-Net (94 MFLOP). The bar is 10. Then the same images as PNG files, each
decoded when it is asked for, in random order: from a folder and from shards.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from timing import seconds, student_rate

from modalities.image.data import ImageData, ImageDataModule
from modalities.image.folder import Files
from scm_core.apps.sharing import pack
from scm_core.contract.config import Limits
from scm_core.data import shards
from scm_core.networks.backbones.transformer import Transformer

BAR = 10.0
SECONDS = 3.0
FILES = 5_000


def loader_rate(data: ImageDataModule) -> float:
    """Samples per second of the training loader alone, over whole epochs."""
    samples, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        samples += sum(len(batch.x) for batch in data.train_dataloader())
    return samples / (time.perf_counter() - start)


def decoding_rates(data: ImageDataModule) -> tuple[float, float]:
    """Images per second that one process decodes from a folder, and from shards of it."""
    with tempfile.TemporaryDirectory() as place:
        folder, packed = Path(place) / "folder", Path(place) / "shards"
        folder.mkdir()
        for i, image in enumerate(data.train_set.split.images[:FILES, 0].numpy()):
            Image.fromarray(image).save(folder / f"{i}.png")
        pack.main([f"root={folder}", f"out={packed}", "megabytes=1"])
        files, members = sorted(folder.iterdir()), list(shards.members(packed))
        return decoding_rate(files), decoding_rate(members)


def decoding_rate(files: list[shards.File]) -> float:
    """Images per second of files that are decoded in random order."""
    images, order = Files(files, None, 1, Limits()), torch.randperm(len(files))
    return len(files) / seconds(lambda: images[order])


def main() -> None:
    """Print the rates and their ratios; exit 1 below the bar."""
    data = ImageDataModule(ImageData(root=sys.argv[1] if len(sys.argv) > 1 else None))
    data.setup()
    model = Transformer(data.shape, data.condition, width=128, depth=4, heads=4, patch=4)
    batch = next(iter(data.train_dataloader()))
    loader, student = loader_rate(data), student_rate(model, model, batch, SECONDS)
    print(f"loader, one process      {loader:12,.0f} images/s")
    print(f"student step consumes    {student:12,.0f} images/s")
    print(f"ratio                    {loader / student:12.1f}   (bar: at least {BAR:.0f})")
    folder, packed = decoding_rates(data)
    print(f"decoded from a folder    {folder:12,.0f} images/s")
    print(f"decoded from shards      {packed:12,.0f} images/s")
    print(f"ratio                    {packed / folder:12.2f}")
    raise SystemExit(loader < BAR * student)


if __name__ == "__main__":
    main()
