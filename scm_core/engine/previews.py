"""Previews: the same few samples of the EMA weights, again and again while they are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import nn

from scm_core.contract.fields import Schema
from scm_core.contract.spec import SIGMA_DATA, Codec, DataModule
from scm_core.data import media
from scm_core.data.latents import run_autoencoder
from scm_core.engine import sampling, sharding
from scm_core.engine.callbacks import Averaging, OnOptimizerStep
from scm_core.engine.stages.stage import Stage
from scm_core.method import samplers
from scm_core.method.ema import PowerEMA
from scm_core.networks import lora

SAMPLES = 40  # of a preview; of an autoencoder's half are given, half come back


class Previews(OnOptimizerStep):
    """Samples of the EMA weights, always from the same noise, as PNG and in TensorBoard."""

    def __init__(
        self, every: int, folder: Path, draw: Callable[[nn.Module], Any], codec: Codec
    ) -> None:
        self.every, self.folder, self.draw, self.codec = every, folder, draw, codec

    def on_train_batch_end(self, trainer: Trainer, stage: Stage, *_: Any) -> None:
        step = trainer.global_step
        if not self.stepped(trainer) or step % self.every:
            return
        averaging = next(c for c in trainer.callbacks if isinstance(c, Averaging))
        # Drawn as samples are, without compiling the network for a batch of another size; by all
        # processes, since each may hold a shard.
        eager = torch.compiler.set_stance("force_eager")
        precision = trainer.precision_plugin.forward_context()
        with averaged(stage.backbone, averaging.ema), eager, precision:
            drawn = self.draw(stage.backbone)
        if not trainer.is_global_zero:
            return
        picture = self.codec.preview(drawn)
        media.write_png(picture, self.folder / f"{step:07d}.png")
        trainer.logger.experiment.add_image("samples", picture, step, dataformats="HWC")
        if heard := self.codec.sound(drawn):
            waveform, rate = heard
            trainer.logger.experiment.add_audio("samples", waveform, step, sample_rate=rate)


@contextlib.contextmanager
def averaged(backbone: nn.Module, ema: PowerEMA) -> Iterator[None]:
    """The backbone with its EMA weights and in eval mode, within a `with` block."""
    live = {key: sharding.local(v).detach().clone() for key, v in backbone.state_dict().items()}
    modes = {module: module.training for module in backbone.modules()}  # not all of them alike
    sharding.overwrite(backbone, ema.average)
    backbone.eval()
    try:
        yield
    finally:
        sharding.overwrite(backbone, live)
        for module, training in modes.items():
            module.training = training


def samples(
    sampler: str,
    steps: int,
    last: float,
    shape: tuple[int, ...],
    schema: Schema,
    codec: Codec,
    seed: int,
) -> Callable[[nn.Module], Any]:
    """A function that samples the same media by whatever weights a backbone has.

    `last` is where a student's sampler looks last.
    """
    noise = sampling.seeded_noise(shape, SAMPLES, seed, SIGMA_DATA)
    condition = sampling.cycled_condition(schema, SAMPLES)

    def preview(backbone: nn.Module) -> Any:
        device = next(backbone.parameters()).device
        ends = samplers.ends(lora.whole(backbone), last, SIGMA_DATA)
        sample = sampling.sampler(sampler, steps, SIGMA_DATA, ends=ends)
        there = {key: value.to(device) for key, value in condition.items()}
        x = sample(backbone, noise.to(device), there, sampling.fresh_noise(seed, 0))
        return codec.decode(x.cpu())

    return preview


def reconstructions(data: DataModule, codec: Codec) -> Callable[[nn.Module], Any]:
    """A function that gives held-out media, and the same through an autoencoder."""
    given = next(iter(data.val_dataloader())).x[: SAMPLES // 2]

    def preview(autoencoder: nn.Module) -> Any:
        z = run_autoencoder(autoencoder, "encode", given.to(next(autoencoder.parameters()).device))
        x = run_autoencoder(autoencoder, "decode", z).cpu()
        return codec.decode(torch.cat([given, x]))

    return preview
