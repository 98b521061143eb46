"""What one training step costs: diffusion, a consistency student by Dual, and by two passes.

    python benchmarks/step_cost.py [--rounds 10] [--threads 2]

Forward and backward of each, timed in interleaved rounds (medians), and the tensors a step holds at
its peak beside the network, gradients included. Ratios are to the diffusion step of the same run.
"Two passes" is the usual code: `torch.func.jvp` without a graph, then the forward again with one.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from scm_core import TrigFlow
from scm_core.base.device import resolve_precision
from scm_core.contract.fields import Label
from scm_core.dual import jvp
from scm_core.method.objectives.consistency import consistency_loss
from scm_core.method.objectives.diffusion import diffusion_loss
from scm_core.method.tangent import normalise, student_tangent
from scm_core.networks.backbones.transformer import Transformer
from scm_core.networks.backbones.unet import UNet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIGMA_DATA = 0.5
SCHEMA = {"label": Label(10)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Step = Callable[[nn.Module, int, tuple[int, ...]], None]


def transformer(shape: tuple[int, ...]) -> nn.Module:
    return Transformer(shape, SCHEMA, width=256, depth=8, heads=4)


def unet(shape: tuple[int, ...]) -> nn.Module:
    options = {"channels": (48, 96, 96), "blocks": 2, "embedding": 192, "attention": 1}
    return UNet(shape, SCHEMA, **options)


NETWORKS: dict[str, tuple[Callable[[tuple[int, ...]], nn.Module], int, tuple[int, ...]]] = {
    "transformer, 64 tokens": (transformer, 32, (4, 16, 16)),
    "transformer, 1024 tokens": (transformer, 2, (4, 64, 64)),
    "u-net, 32 x 32": (unet, 8, (3, 32, 32)),
}


def noised(batch: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """x_t, its velocity, t and the condition of a random batch."""
    path = TrigFlow(SIGMA_DATA)
    x0, noise = (SIGMA_DATA * torch.randn(batch, *shape, device=DEVICE) for _ in range(2))
    t = torch.rand(batch, device=DEVICE) * 1.5
    condition = {"label": torch.randint(0, 10, (batch,), device=DEVICE)}
    return path.interpolate(x0, noise, t), path.velocity(x0, noise, t), t, condition


def diffusion(network: nn.Module, batch: int, shape: tuple[int, ...]) -> None:
    x_t, velocity, t, condition = noised(batch, shape)
    F = network(x_t / SIGMA_DATA, t, condition).float()
    diffusion_loss(F, velocity, torch.zeros(batch, device=DEVICE), SIGMA_DATA).mean().backward()


def consistency(derivative: Callable[..., Any]) -> Step:
    def step(network: nn.Module, batch: int, shape: tuple[int, ...]) -> None:
        x_t, velocity, t, condition = noised(batch, shape)
        F, g = student_tangent(
            derivative, network, x_t, velocity, t, SIGMA_DATA, 1.0, condition=condition
        )
        consistency_loss(F, normalise(g), torch.zeros(batch, device=DEVICE)).mean().backward()

    return step


def two_passes(network: nn.Module, primals: Any, tangents: Any, condition: Any) -> Any:
    """`torch.func.jvp` without a graph, then F again with one."""
    # Its GroupNorm wants contiguous tensors, but a convolution returns channels_last ones.
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    hooks = [m.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),)) for m in norms]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        dF = torch.func.jvp(lambda x, t: network(x, t, condition), primals, tangents)[1]
    for hook in hooks:
        hook.remove()
    return network(*primals, condition), dF


STEPS: dict[str, Step] = {
    "diffusion": diffusion,
    "student, Dual": consistency(jvp),
    "student, two passes": consistency(two_passes),
}


def run(step: Step, network: nn.Module, batch: int, shape: tuple[int, ...], dtype: str) -> None:
    """One step from cleared gradients; bfloat16 by autocast."""
    network.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
        step(network, batch, shape)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def times(name: str, dtype: str, rounds: int) -> dict[str, float]:
    """Median seconds of each kind of step, a round of all kinds at a time; nan if it fails."""
    build, batch, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = build(shape).to(DEVICE)
    seconds: dict[str, list[float]] = {kind: [] for kind in STEPS}
    for _ in range(rounds + 2):
        for kind, step in STEPS.items():
            start = time.perf_counter()
            try:
                run(step, network, batch, shape, dtype)
            except RuntimeError:  # torch.func.jvp cannot do every network under autocast
                if kind != "student, two passes":
                    raise
                seconds[kind].append(math.nan)
            else:
                seconds[kind].append(time.perf_counter() - start)
    return {kind: statistics.median(values[2:]) for kind, values in seconds.items()}


def peak(name: str, dtype: str, step: Step) -> float:
    """MiB of tensors that a step adds at its highest, kernels' own buffers included."""
    build, batch, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = build(shape).to(DEVICE)
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(step, network, batch, shape, dtype)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return added(lambda: run(step, network, batch, shape, dtype)) / 2**20


def added(work: Callable[[], object]) -> int:
    """Bytes of tensors that `work` adds at its highest on a CPU, kernels' own buffers included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fast = resolve_precision("auto", DEVICE) == "bf16-mixed"
    dtypes = list(DTYPES) if fast else ["float32"]
    print(
        f"torch {torch.__version__}, {DEVICE}, {options.threads} threads, {options.rounds} rounds\n"
    )
    print(f"{'':<40}{'ms':>8}{'ratio':>8}{'peak MiB':>12}{'ratio':>8}")
    for dtype in dtypes:
        for name in NETWORKS:
            print(f"{name}, {dtype}")
            seconds = times(name, dtype, options.rounds)
            working = {kind: step for kind, step in STEPS.items() if seconds[kind] > 0}
            memory = {kind: peak(name, dtype, step) for kind, step in working.items()}
            for kind in STEPS:
                print(f"  {kind:<38}" + row(seconds, memory, kind))


def row(seconds: dict[str, float], memory: dict[str, float], kind: str) -> str:
    if kind not in memory:
        return "   fails inside torch.func.jvp"
    time_ratio = seconds[kind] / seconds["diffusion"]
    memory_ratio = memory[kind] / memory["diffusion"]
    return f"{seconds[kind] * 1e3:8.0f}{time_ratio:8.2f}{memory[kind]:12.0f}{memory_ratio:8.2f}"


if __name__ == "__main__":
    main()
