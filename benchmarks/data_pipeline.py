"""Does the data pipeline keep up? Samples per second of the loader over those a student step uses.

    python benchmarks/data_pipeline.py [data.root]

The student is a small transformer (1.2 M parameters, 81 MFLOP an image), cheaper and so hungrier
than the plugin's tiny U-Net (94 MFLOP). The bar is 10.
"""

from __future__ import annotations

import sys
import time

from timing import student_rate

from modalities.image.data import ImageData, ImageDataModule
from scm_core.backbones.transformer import Transformer

BAR = 10.0
SECONDS = 3.0


def loader_rate(data: ImageDataModule) -> float:
    """Samples per second of the training loader alone, over whole epochs."""
    samples, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        samples += sum(len(batch.x) for batch in data.train_dataloader())
    return samples / (time.perf_counter() - start)


def main() -> None:
    """Print both rates and their ratio; exit 1 below the bar."""
    data = ImageDataModule(ImageData(root=sys.argv[1] if len(sys.argv) > 1 else None))
    data.setup()
    model = Transformer(data.shape, data.condition, width=128, depth=4, heads=4, patch=4)
    batch = next(iter(data.train_dataloader()))
    loader, student = loader_rate(data), student_rate(model, model, batch, SECONDS)
    print(f"loader, one process      {loader:12,.0f} images/s")
    print(f"student step consumes    {student:12,.0f} images/s")
    print(f"ratio                    {loader / student:12.1f}   (bar: at least {BAR:.0f})")
    raise SystemExit(loader < BAR * student)


if __name__ == "__main__":
    main()
