"""What a student's training holds in memory: all weights or an adapter, with activations or not.

    python benchmarks/memory.py [rank=16] [size=base] [batch=2]

Counts the megabytes of weights, gradients, Adam's state and EMA, and measures the most that all
tensors together take in a training step on the CPU, in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from omegaconf import OmegaConf
from step_cost import added
from torch import Tensor, nn

from scm_core.base import console
from scm_core.base.arguments import parse
from scm_core.contract.objectives import Phase
from scm_core.contract.spec import Batch
from scm_core.engine import config, sharding
from scm_core.engine.stages import Stage
from scm_core.method.ema import PowerEMA
from scm_core.method.objectives.consistency import Consistency
from scm_core.method.objectives.distribution_matching import DistributionMatching
from scm_core.networks import backbones, lora

SHAPE, MB = (3, 32, 32), 1e6
KINDS = {"consistency": Consistency, "distribution_matching": DistributionMatching}
PLANS = (("consistency",), ("consistency", "distribution_matching"))
HEADS = ("student", "objectives", "trained", "weights", "gradients", "Adam", "EMA", "sum")
HEADS += ("sum / teacher", "peak")


@dataclass
class Settings:
    """The adapter's rank, the size of the transformer, and the samples in a batch."""

    rank: int = 16
    size: str = "base"
    batch: int = 2


def size_of(tensors: Iterable[Tensor]) -> float:
    """Megabytes of different tensors."""
    return sum(x.numel() * x.element_size() for x in {id(x): x for x in tensors}.values()) / MB


def build(network: nn.Module, rank: int | None, plan: tuple[str, ...], recompute: bool) -> Stage:
    """A stage as a training makes it."""
    backbone, teacher = network, copy.deepcopy(network) if rank is None else None
    if rank is not None:
        adapters = lora.Adapters(network, rank)
        backbone, teacher = adapters.new(), adapters.off()
    named = {name: KINDS[name](teacher=teacher) for name in plan}
    stage = Stage(backbone, [Phase(dict.fromkeys(plan, 1.0), 1, 1e-4)], named, {}, teacher)
    if recompute:
        for one in stage.networks():
            sharding.recompute(one, lora.context_fn(backbone))
    stage.on_fit_start()
    return stage


def row(settings: Settings, rank: int | None, plan: tuple[str, ...], recompute: bool) -> list[str]:
    """What a student holds, counted, and the peak of its second step, measured."""
    torch.manual_seed(0)
    network = backbones.build(backbones.BackboneConfig(size=settings.size), SHAPE, {})
    teacher = size_of(network.parameters())
    stage = build(network, rank, plan, recompute)
    optimizer = torch.optim.Adam(stage.parameters(), 1e-4)
    ema = PowerEMA(stage.backbone.state_dict(), 0.05)
    trained = [p for p in stage.parameters() if p.requires_grad]
    weights = [p for model in stage.networks() for p in model.parameters()] + trained

    def step() -> None:
        optimizer.zero_grad()
        stage.training_step(Batch(0.5 * torch.randn(settings.batch, *SHAPE), {}), 0).backward()
        optimizer.step()
        ema.update()

    step()
    moments = [x for state in optimizer.state.values() for x in state.values()]
    kept = [weights, trained, moments, ema.average.values()]
    counted = [size_of(tensors) for tensors in kept]
    held = sum(counted)
    optimizer.zero_grad()
    most = held - counted[1] + added(step) / MB
    name = "full" if rank is None else f"LoRA, rank {rank}"
    figures = [f"{size_of(trained) / 4:.1f}M", *(f"{x:.0f}" for x in (*counted, held))]
    figures += [f"{held / teacher:.2f}", f"{most:.0f}"]
    return [name + ", recomputed" * recompute, " + ".join(plan), *figures]


def main(arguments: list[str]) -> None:
    """Print the table."""
    given = OmegaConf.structured(Settings)
    settings = OmegaConf.to_object(config.merge(given, ("command line", parse(arguments))))
    print(f"| {' | '.join(HEADS)} |\n{'|---' * len(HEADS)}|", flush=True)
    for plan in PLANS:
        for recompute in (False, True):
            for rank in (None, settings.rank):
                print(f"| {' | '.join(row(settings, rank, plan, recompute))} |", flush=True)


if __name__ == "__main__":
    console.run(main, __doc__)
