"""Does the data pipeline keep up? Samples per second of the loader over those a student step uses.

    python benchmarks/data_pipeline.py [data.root]

The student is a small transformer (1.2 M parameters, 81 MFLOP an image), cheaper and so hungrier
than the plugin's tiny U-Net (94 MFLOP). The bar is 10.
"""

from __future__ import annotations

import sys
import time

import torch

from modalities.image.data import ImageData, ImageDataModule
from scm_core import TrigFlow, dual
from scm_core.backbones.transformer import Transformer
from scm_core.losses.consistency import consistency_loss, normalise, student_tangent
from scm_core.modality import SIGMA_DATA, Batch
from scm_core.proposal import LogNormalProposal

BAR = 10.0
SECONDS = 3.0


def loader_rate(data: ImageDataModule) -> float:
    """Samples per second of the training loader alone, over whole epochs."""
    samples, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        samples += sum(len(batch.x) for batch in data.train_dataloader())
    return samples / (time.perf_counter() - start)


def student_rate(data: ImageDataModule) -> float:
    """Samples per second that a consistency training step (sCT) with its optimiser consumes."""
    model = Transformer(data.shape, data.condition, width=128, depth=4, heads=4, patch=4)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch = next(iter(data.train_dataloader()))
    _student_step(model, optimiser, batch)  # the first one allocates
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        _student_step(model, optimiser, batch)
        steps += 1
    return steps * len(batch.x) / (time.perf_counter() - start)


def _student_step(model: Transformer, optimiser: torch.optim.Optimizer, batch: Batch) -> None:
    flow = TrigFlow(SIGMA_DATA)
    t = LogNormalProposal(-0.8, 1.6, SIGMA_DATA).sample(len(batch.x))
    noise = torch.randn_like(batch.x) * SIGMA_DATA
    x_t, velocity = flow.interpolate(batch.x, noise, t), flow.velocity(batch.x, noise, t)
    F, g = student_tangent(
        dual.jvp, model, x_t, velocity, t, SIGMA_DATA, 1.0, condition=batch.condition
    )
    optimiser.zero_grad()
    consistency_loss(F, normalise(g), torch.zeros_like(t)).mean().backward()
    optimiser.step()


def main() -> None:
    """Print both rates and their ratio; exit 1 below the bar."""
    data = ImageDataModule(ImageData(root=sys.argv[1] if len(sys.argv) > 1 else None))
    data.setup()
    loader, student = loader_rate(data), student_rate(data)
    print(f"loader, one process      {loader:12,.0f} images/s")
    print(f"student step consumes    {student:12,.0f} images/s")
    print(f"ratio                    {loader / student:12.1f}   (bar: at least {BAR:.0f})")
    raise SystemExit(loader < BAR * student)


if __name__ == "__main__":
    main()
