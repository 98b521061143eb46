"""What `gpu_check` measures: exactness, the cost of steps, latency; each yields its results.

What wants the GPU to itself first yields None.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from step_cost import DEVICE, SCHEMA, consistency, diffusion, noised, run, two_passes
from timing import seconds
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from scm_core import dual
from scm_core.contract.spec import SIGMA_DATA
from scm_core.dual import flash
from scm_core.dual.attention import in_blocks
from scm_core.dual.verification import awakened
from scm_core.engine import sampling
from scm_core.engine.replay import Replayed
from scm_core.networks import backbones

try:  # a kernel of others, value and tangent in one, where it is installed
    from jvp_flash_attention.jvp_attention import JVPAttn
except ImportError:
    JVPAttn = None
CUDA = DEVICE == "cuda"
ROUNDS = 10 if CUDA else 1


class Result(NamedTuple):
    """One line of the report; `ok` is None where there is no bar."""

    name: str
    figure: str
    ok: bool | None = None


class Network(NamedTuple):
    """What is timed: a network, its batch and sample shape, and the largest sCT / diffusion."""

    config: dict[str, Any]
    batch: int
    shape: tuple[int, ...]
    bar: float | None


BASE = {"name": "transformer", "size": "base"}
NETWORKS = {
    "U-Net small, 28 x 28, patch 2": Network(
        {"name": "unet", "size": "small"}, 512, (1, 28, 28), 1.45
    ),
    "U-Net base, 28 x 28": Network(
        {"name": "unet", "size": "base", "patch": 1}, 256, (1, 28, 28), 1.45
    ),
    "transformer base, 256 tokens": Network(BASE, 64, (4, 32, 32), 1.45),
    "transformer base, 1,024 tokens": Network(BASE, 16, (4, 64, 64), 1.60),
    "transformer base, 4,096 tokens": Network(BASE, 4, (4, 128, 128), 1.60),
}
if not CUDA:
    NETWORKS = {
        "U-Net tiny": Network({"name": "unet", "size": "tiny"}, 2, (1, 8, 8), None),
        "transformer tiny": Network({"name": "transformer", "size": "tiny"}, 2, (1, 8, 8), None),
    }
SLOW = "U-Net base, 28 x 28"  # to compile
MEMORY, LATENCY = 1.15, 25.0  # bars: of the peak beside a diffusion step's; ms of two steps
LARGE = "xxl" if CUDA else "tiny"


def build(config: dict[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """A network whose layers that start at zero have weights."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        network = backbones.build(backbones.BackboneConfig(**config), shape, SCHEMA)
    return awakened(network)


def exact() -> Iterator[Result]:
    """Dual on this device against `torch.func.jvp` in float64, as |a - b| / |b|."""
    size = (4, 32, 32) if CUDA else (1, 8, 8)
    for name in ("unet", "transformer"):
        network = build({"name": name, "size": "small" if CUDA else "tiny"}, size)
        x, dx, t, condition = noised(4, size)
        primals, tangents = (x, t), (dx, torch.ones_like(t))
        wide = awakened(network).double()
        doubles = [tuple(z.double() for z in pair) for pair in (primals, tangents)]
        reference = two_passes(wide, *doubles, condition)[1]
        for dtype, bar in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            half = dtype != torch.float32
            with (
                torch.backends.cudnn.flags(allow_tf32=False),
                torch.autocast(DEVICE, torch.bfloat16, enabled=half),
            ):
                dF = dual.jvp(network, primals, tangents, condition=condition)[1]
            error = ((dF.double() - reference).norm() / reference.norm()).item()
            said = f"relative error {error:.1e}, at most {bar:.0e}"
            yield Result(f"tangent of a {name}, {str(dtype)[6:]}", said, error <= bar)


def cost(name: str, compiled: bool) -> Iterator[Any]:
    """Milliseconds and memory of both steps; it yields None to ask for the GPU."""
    config, batch, shape, bar = NETWORKS[name]
    network, how = build(config, shape), "compiled" if compiled else "eager"
    kinds = {"diffusion": diffusion, "sCT": consistency(dual.jvp)}
    dtype = "bfloat16" if CUDA else "float32"
    steps = {k: partial(run, work, network, batch, shape, dtype) for k, work in kinds.items()}
    if compiled:
        network.compile(dynamic=False)
        spent = sum(map(seconds, steps.values()))
        network.zero_grad()
        if CUDA:
            torch.cuda.empty_cache()
        yield Result(f"{name}: both steps compiled in", f"{spent:.0f} s, beside others")
    yield None
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS + 2):
        for kind, step in steps.items():
            times[kind].append(seconds(step))
    plain, fused = (1e3 * statistics.median(values[2:]) for values in times.values())
    said = f"{fused:.1f} / {plain:.1f} ms = {fused / plain:.2f}"
    if bar is None:
        yield Result(f"{name}, {how}: sCT / diffusion", said)
    else:
        fits = fused / plain <= bar
        yield Result(f"{name}, {how}: sCT / diffusion", f"{said}, at most {bar:.2f}", fits)
    if CUDA:
        plain, fused = map(peak, steps.values())
        said = f"{fused:.2f} / {plain:.2f} GiB = {fused / plain:.2f}, at most {MEMORY}"
        yield Result(f"{name}, {how}: peak memory", said, fused / plain <= MEMORY)


def peak(work: Callable[[], None]) -> float:
    """GiB at the highest, with what the network takes itself."""
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**30


def latency() -> Iterator[Any]:
    """Two steps of 1.5 billion parameters, one sample, eager and as a CUDA graph."""
    shape = (4, 64, 64)
    network = build({"name": "transformer", "size": LARGE}, shape).eval()
    condition = {"label": torch.zeros(1, dtype=torch.long, device=DEVICE)}
    noise = SIGMA_DATA * torch.randn(1, *shape, device=DEVICE)
    draw = sampling.sampler("consistency", 2, SIGMA_DATA)

    def evaluate(*given: Any) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=CUDA):
            return network(*given)

    yield None
    with torch.no_grad():
        for how, model in (("eager", evaluate), ("graph", Replayed(evaluate, network))):
            work = partial(draw, model, noise, condition, sampling.fresh_noise(0, 0))
            ms = 1e3 * statistics.median([seconds(work) for _ in range(ROUNDS + 3)][3:])
            ok = ms <= LATENCY if how == "graph" and CUDA else None
            said = f"{ms:.1f} ms, at most {LATENCY:g}" if ok is not None else f"{ms:.1f} ms"
            yield Result(f"transformer {LARGE}, one sample in two steps, {how}", said, ok)


def attention() -> Iterator[Any]:
    """Attention's tangent alone: the kernel and the blocks, beside torch's forward."""
    yield None
    for tokens, width in ((1024, 64), (4096, 64), (4096, 128)) if CUDA else ((64, 32),):
        shape = (16 * 1024 // tokens if CUDA else 1, 768 // width, tokens, width)
        dtype = torch.bfloat16 if CUDA else torch.float32
        tensors = torch.randn(6, *shape, dtype=dtype, device=DEVICE).unbind(0)
        exact = None
        if tokens <= 1024:
            wide = [x.double() for x in tensors]
            with sdpa_kernel(SDPBackend.MATH):
                exact = torch.func.jvp(sdpa, tuple(wide[:3]), tuple(wide[3:]))[1]
        for name, way in ways(*tensors).items():
            said = ""
            if exact is not None and name != "torch's forward":
                error = (way().double() - exact).norm() / exact.norm()
                said = f", relative error {error.item():.1e}"
            spent = statistics.median(seconds(partial(repeat, way)) for _ in range(ROUNDS)) / 5
            yield Result(
                f"attention, {tokens} tokens, head {width}: {name}", f"{1e3 * spent:.3f} ms{said}"
            )


def repeat(work: Callable[[], Any]) -> None:
    for _ in range(5):
        work()


def ways(q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> dict[str, Any]:
    """Functions that give the tangent of attention, and its plain forward."""
    out, scale = sdpa(q, k, v), q.shape[-1] ** -0.5
    pairs = (q, dq), (k, dk), (v, dv), (None, None)
    found = {"torch's forward": partial(sdpa, q, k, v)}
    found["blocks"] = partial(in_blocks, out, *pairs, False, scale)
    if flash.applies(q, v):
        given = (out, q, k, v, dq, dk, dv, None, False, scale)
        found["kernel"] = partial(flash.tangent, *given)
    if JVPAttn and CUDA:
        found["jvp-flash-attention, with the value"] = partial(others, (q, k, v), (dq, dk, dv))
    return found


def others(primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Tensor:
    """The tangent by the package jvp-flash-attention."""
    with forward_ad.dual_level():
        pairs = zip(primals, tangents, strict=True)
        out = JVPAttn.fwd_dual(*(forward_ad.make_dual(*pair) for pair in pairs))
        return forward_ad.unpack_dual(out).tangent


TIMED = {
    "attention": attention,
    "latency": latency,
    **{f"{name}, eager": partial(cost, name, False) for name in NETWORKS},
    **{
        f"{name}, compiled": partial(cost, name, True)
        for name in NETWORKS
        if "base, 28" not in name
    },
}
