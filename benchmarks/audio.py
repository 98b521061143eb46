"""How fast sound is made and fed: real-time factors of two steps, and rendering over consumption.

    python benchmarks/audio.py [key=value ...]

Keys are those of training (preset=cpu, data.font=FILE, ...). The network is untrained, which costs
the same. Seconds are medians of rounds in which every part has its turn.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from timing import seconds, student_rate, untrained

from modalities.audio.data import AudioDataModule
from modalities.audio.vocoder import find_weights
from scm_core.base.arguments import parse
from scm_core.contract.spec import Codec
from scm_core.engine import config, sampling
from scm_core.engine.checkpoint import Checkpoint

SAMPLING_BAR, VOCODER_BAR, PIPELINE_BAR = 20.0, 5.0, 5.0
CLIPS = 16  # sampled at a time
ROUNDS = 5
SECONDS = 5.0  # that each rate of the pipeline is measured for


def real_time_factors(model: Checkpoint, vocoders: dict[str, Codec]) -> dict[str, float]:
    """Seconds of sound over seconds spent: by two steps alone, and with each vocoder."""
    draw = sampling.make_sampler(model, steps=2)
    condition = sampling.cycled_condition(model.condition, CLIPS)
    condition = {key: value.to(model.device) for key, value in condition.items()}
    noise = sampling.seeded_noise(model.shape, CLIPS, 0, model.sigma_data).to(model.device)
    x = draw(model.model, noise, condition)
    parts = {"two steps": lambda: draw(model.model, noise, condition)}
    for name, codec in vocoders.items():
        parts[name] = lambda codec=codec: codec.decode(x)
    rounds = [{name: seconds(part) for name, part in parts.items()} for _ in range(ROUNDS + 1)]
    median = {name: statistics.median(row[name] for row in rounds[1:]) for name in parts}
    sound = CLIPS * model.shape[-1] * model.config.mel.hop / model.config.mel.sample_rate
    alone = median.pop("two steps")
    factors = {name: sound / (alone + decoding) for name, decoding in median.items()}
    return {"two steps, no vocoder": sound / alone, **factors}


def rendering_rate(data: AudioDataModule, codec: Codec) -> float:
    """Clips per second that are rendered (or decoded from files) and made into samples."""
    clips, start = 0, time.perf_counter()
    for media, _ in data.real("train"):
        clips += len(codec.encode(media))
        if time.perf_counter() - start > SECONDS:
            break
    return clips / (time.perf_counter() - start)


def main() -> None:
    """Print factors and rates beside their bars; exit 1 below one."""
    spec, full = config.load(["modality=audio", "preset=cpu", *sys.argv[1:]])
    data = spec.data(full)
    data.setup()
    model = untrained(spec, full, data, data.shape)
    vocoders = {}
    for name in ("griffin_lim", *["hifigan"] * (find_weights(full.decoder.weights) is not None)):
        chosen = config.merge(full, ("benchmark", parse([f"decoder.vocoder={name}"])))
        vocoders[f"two steps, {name}"] = spec.codec(chosen, data.statistics)
    with torch.no_grad():
        factors = real_time_factors(model, vocoders)
        rendered = rendering_rate(data, model.codec)
    batch = next(iter(data.train_dataloader()))
    consumed = student_rate(model.backbone, model.model, batch, SECONDS)
    bars = dict.fromkeys(factors, VOCODER_BAR) | {"two steps, no vocoder": SAMPLING_BAR}
    print(f"{torch.get_num_threads()} threads, {CLIPS} clips at a time")
    for name, factor in factors.items():
        print(f"{name:<28}{factor:10.1f} × real time   (bar: at least {bars[name]:.0f})")
    print(f"{'rendered and transformed':<28}{rendered:10,.0f} clips/s, one process")
    print(f"{'student step consumes':<28}{consumed:10,.0f} clips/s")
    print(f"{'ratio':<28}{rendered / consumed:10.1f}   (bar: at least {PIPELINE_BAR:.0f})")
    below = any(factor < bars[name] for name, factor in factors.items())
    raise SystemExit(below or rendered < PIPELINE_BAR * consumed)


if __name__ == "__main__":
    main()
