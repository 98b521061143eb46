"""Check that `Dual` differentiates a given network rightly, against four independent references."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_core.dual.core import jvp
from scm_core.dual.fallback import fallbacks

_SAMPLES = 4  # of the batch; more would only cost time
_STEPS = (1e-2, 1e-3, 1e-4)  # large ones suit networks with float32 inside, small ones the others
_LIMITS = {
    torch.float64: {"forward": 1e-6, "gradient": 1e-6, "difference": 1e-4, "jvp": 1e-6},
    torch.float32: {"forward": 1e-5, "gradient": 1e-4, "difference": 1e-2, "jvp": 1e-4},
}
_SMALL = 0.1  # of the largest gradient: what is below is compared to that, for it may be rounding


@dataclass(frozen=True)
class Report:
    """What `verify` found; errors are relative, `|a - b| / |b|`, and None where unavailable.

    forward: F against the plain forward. gradient: the worst gradient of a scalar of F, by x or a
    parameter, against the plain one. difference: dF against central differences, which are wrong
    across a kink (ReLU) and do not count where jvp agrees. jvp: dF against `torch.func.jvp`, None
    where that fails, draws another dropout mask, or is itself no derivative of F (it takes what is
    detached for constant), as an agreeing difference shows. fallbacks: operations
    without a rule and their number of calls. refusal: why `Dual` cannot run the network at all.
    dtype: float64, or float32 for a network that insists on it.
    """

    forward: float | None = None
    gradient: float | None = None
    difference: float | None = None
    jvp: float | None = None
    fallbacks: dict[str, int] = field(default_factory=dict)
    refusal: str | None = None
    dtype: torch.dtype = torch.float64

    @property
    def ok(self) -> bool:
        """Whether `Dual` runs the network and every error that counts is within its limit."""
        names = _LIMITS[self.dtype].keys() - ({"difference"} if self.outweighed else set())
        return self.refusal is None and all(map(self._within, names))

    @property
    def outweighed(self) -> bool:
        """Whether the finite difference disagrees with the exact jvp, which `Dual` agrees with."""
        return self.jvp is not None and self._within("jvp") and not self._within("difference")

    def _within(self, name: str) -> bool:
        error = getattr(self, name)
        return error is None or error <= _LIMITS[self.dtype][name]

    def __str__(self) -> str:
        if self.refusal is not None:
            return f"Dual: FAILED\n  {self.refusal}"
        lines = [f"Dual: {'ok' if self.ok else 'FAILED'} (in {str(self.dtype).split('.')[1]})"]
        for name, limit in _LIMITS[self.dtype].items():
            error = getattr(self, name)
            text = "unavailable" if error is None else f"{error:.1e}  (limit {limit:.0e})"
            if name == "difference" and self.outweighed:
                text = f"{error:.1e}  (across a kink: the exact jvp agrees)"
            lines.append(f"  {name + ' error':<17} {text}")
        slow = ", ".join(f"{name} x{count}" for name, count in sorted(self.fallbacks.items()))
        return "\n".join([*lines, f"  {'without a rule':<17} {slow or 'none'}"])


def verify(module: nn.Module, batch: tuple[Tensor, dict[str, Tensor]]) -> Report:
    """Check the tangent of `module(x, t, condition)` on `batch = (x, condition)`, x (B, C, *grid).

    Works on a float64 copy, up to four samples, t spread over (0, pi/2), along the path
    `x_u = cos u x0 + sin u z`, whose derivative at u = t is the tangent [sCM, arXiv 2410.11081,
    section 2]. Parameters that are all zero (a fresh output layer) get random values, for a network
    that returns zeros would show nothing. A tangent that fails is in the report; raises ValueError
    for arguments of another kind, and whatever the network's plain forward raises.
    """
    x, condition = _arguments(module, batch)
    try:
        return _verify(module, x, condition, torch.float64)
    except _PlainForwardError:  # it casts to float32 inside
        return _verify(module, x, condition, torch.float32)


def awakened(module: nn.Module) -> nn.Module:
    """A trainable copy whose all-zero parameters (a fresh output layer) have random values."""
    network = copy.deepcopy(module).requires_grad_(True)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


class _PlainForwardError(RuntimeError):
    pass


def _verify(
    module: nn.Module, x: Tensor, condition: dict[str, Tensor], dtype: torch.dtype
) -> Report:
    network = awakened(module).to(dtype)
    x = x.to(dtype)
    condition = {k: v.to(dtype) if v.is_floating_point() else v for k, v in condition.items()}
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    t = (torch.arange(len(x), device=x.device, dtype=dtype) + 0.5) * (math.pi / 2 / len(x))

    def path(u: Tensor) -> tuple[Tensor, Tensor]:
        c, s = (f(u).view(-1, *[1] * (x.ndim - 1)) for f in (torch.cos, torch.sin))
        return c * x + s * noise, c * noise - s * x

    def call(x_t: Any, u: Any) -> Any:
        with _same_dropout(x.device):
            return network(x_t, u, condition)

    try:
        call(path(t)[0], t)
    except RuntimeError as error:
        if dtype == torch.float64:
            raise _PlainForwardError from error
        raise
    return _compare(call, list(network.parameters()), path, t)


def _compare(
    call: Callable[..., Any],
    parameters: list[Tensor],
    path: Callable[[Tensor], tuple[Tensor, Tensor]],
    t: Tensor,
) -> Report:
    x, velocity = path(t)
    primals, tangents = (x.requires_grad_(True), t), (velocity, torch.ones_like(t))
    try:
        with fallbacks() as slow:
            out, tangent = jvp(call, primals, tangents)
    except Exception as error:  # noqa: BLE001  (whatever it is, it belongs in the report)
        return Report(refusal=str(error))
    plain = call(*primals)
    with torch.no_grad():
        errors = [
            _error((call(path(t + h)[0], t + h) - call(path(t - h)[0], t - h)) / (2 * h), tangent)
            for h in _STEPS
        ]
    exact = _jvp_error(call, primals, tangents, plain, tangent)
    # Twice the limit away from a tangent that the difference confirms, it is not what changes F.
    if exact is not None and min(errors) <= _LIMITS[t.dtype]["difference"] < exact / 2:
        exact = None
    return Report(
        forward=_error(out, plain),
        gradient=_gradient_error(out, plain, [x, *parameters]),
        difference=min(errors),
        jvp=exact,
        fallbacks=dict(slow),
        dtype=t.dtype,
    )


def _error(value: Tensor, reference: Tensor, least: float = 0.0) -> float:
    """Error relative to the reference's norm, or to `least` if that is more."""
    return (value - reference).norm().item() / max(reference.norm().item(), least, 1e-300)


def _gradient_error(value: Tensor, reference: Tensor, inputs: list[Tensor]) -> float:
    def gradients(f: Tensor) -> tuple[Tensor | None, ...]:
        if not f.requires_grad:
            return (None,) * len(inputs)
        weight = torch.linspace(-1, 1, f.numel(), dtype=f.dtype, device=f.device).view(f.shape)
        return torch.autograd.grad((f * weight).sum(), inputs, allow_unused=True)

    pairs = list(zip(gradients(value), gradients(reference), strict=True))
    if any((a is None) != (b is None) for a, b in pairs):
        return math.inf
    pairs = [(a, b) for a, b in pairs if a is not None]
    # A key's bias moves all logits of a row alike: its gradient is zero, and rounding is left.
    least = _SMALL * max((b.norm().item() for _, b in pairs), default=0.0)
    errors = [_error(a, b, least) for a, b in pairs]
    return torch.tensor([0.0, *errors], dtype=torch.float64).max().item()  # NaN if one is


def _jvp_error(
    call: Any, primals: Any, tangents: Any, plain: Tensor, tangent: Tensor
) -> float | None:
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            out, reference = torch.func.jvp(call, primals, tangents)
    except (RuntimeError, NotImplementedError):  # it fails on much that Dual can do
        return None
    same = torch.allclose(out, plain, rtol=1e-4, atol=1e-6)  # it may draw another dropout mask
    return _error(tangent, reference) if same else None


@contextmanager
def _same_dropout(device: torch.device) -> Iterator[None]:
    """Every forward of one check draws the same random numbers."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _arguments(module: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The first samples of the batch, on the module's device."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"verify: module must be an nn.Module, not {type(module).__name__}")
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise ValueError("verify: batch must be Batch(x, condition)")
    x, condition = batch
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise ValueError("verify: batch.x must be a floating-point tensor (B, C, *grid)")
    if not isinstance(condition, dict):
        raise ValueError("verify: batch.condition must be a dict of tensors")
    device = next(module.parameters(), x).device

    def first(value: Tensor) -> Tensor:
        return value[:_SAMPLES].detach().to(device)

    return first(x), {key: first(value) for key, value in condition.items()}
