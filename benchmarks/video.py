"""How fast clips are made and fed: frames per second of two steps, and composing over consumption.

    python benchmarks/video.py [key=value ...]

Keys are those of training (preset=cpu, data.name=folder data.root=FOLDER, ...). Network and
autoencoder are untrained, which costs the same. Seconds are medians of rounds.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time

import torch
from timing import seconds, student_rate, untrained

from scm_core.contract.spec import Batch, DataModule
from scm_core.data.latents import LatentCodec, run_autoencoder
from scm_core.engine import config, sampling
from scm_core.engine.checkpoint import Checkpoint

FRAMES_BAR, PIPELINE_BAR = 30.0, 5.0
CLIPS = (1, 16)  # drawn at a time
ROUNDS = 5
SECONDS = 5.0  # that each rate of the pipeline is measured for


def frames_per_second(model: Checkpoint, clips: int) -> float:
    """Frames drawn in two steps and decoded, over the seconds spent."""
    draw = sampling.make_sampler(model, steps=2)
    condition = sampling.cycled_condition(model.condition, clips)
    noise = sampling.seeded_noise(model.shape, clips, 0, model.sigma_data)

    def make() -> None:
        model.codec.decode(draw(model.model, noise, condition))

    spent = statistics.median([seconds(make) for _ in range(ROUNDS + 1)][1:])
    return clips * model.data_shape[1] / spent


def composing_rate(data: DataModule) -> float:
    """Clips per second that are composed (or read) and made into samples, in one process."""
    clips, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        for batch in data.train_dataloader():
            clips += len(batch.x)
            if time.perf_counter() - start > SECONDS:
                break
    return clips / (time.perf_counter() - start)


def student(words: list[str]) -> tuple[Checkpoint, DataModule, Batch]:
    """A student and its autoencoder, both untrained, their data module, and a batch of latents."""
    spec, full = config.load(["modality=video", "preset=cpu", *words])
    data = spec.data(full)
    data.setup()
    autoencoder = spec.autoencoder(full, data.shape, data.statistics)
    batch = next(iter(data.train_dataloader()))
    latents = run_autoencoder(autoencoder, "encode", batch.x)
    shape = tuple(latents.shape[1:])
    model = untrained(spec, full, data, shape)
    facts = {"mean": [0.0] * shape[0], "std": [1.0] * shape[0], "of": list(data.shape)}
    model = dataclasses.replace(
        model,
        statistics={**data.statistics, "latents": facts},
        codec=LatentCodec(autoencoder, model.codec, facts),
    )
    return model, data, Batch(latents, batch.condition)


def main() -> None:
    """Print rates beside their bars; exit 1 below one."""
    model, data, batch = student(sys.argv[1:])
    with torch.no_grad():
        rates = {clips: frames_per_second(model, clips) for clips in CLIPS}
        composed = composing_rate(data)
    consumed = student_rate(model.backbone, model.model, batch, SECONDS)
    print(f"{torch.get_num_threads()} threads")
    for clips, rate in rates.items():
        name = f"two steps, {clips} clip{'s' * (clips > 1)} at a time"
        print(f"{name:<32}{rate:10,.0f} frames/s   (bar: at least {FRAMES_BAR:.0f})")
    print(f"{'composed and standardised':<32}{composed:10,.0f} clips/s, one process")
    print(f"{'student step consumes':<32}{consumed:10,.0f} clips/s")
    print(f"{'ratio':<32}{composed / consumed:10.1f}   (bar: at least {PIPELINE_BAR:.0f})")
    raise SystemExit(min(rates.values()) < FRAMES_BAR or composed < PIPELINE_BAR * consumed)


if __name__ == "__main__":
    main()
