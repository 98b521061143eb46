"""Power-function averaging of weights (Karras et al. 2024, EDM2, arXiv 2312.02696, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def power_exponent(sigma_rel: float) -> float:
    """gamma of a profile whose relative width is `sigma_rel` in (0, 0.28) (EDM2, algorithm 2).

    `sigma_rel = (gamma + 1)^1/2 (gamma + 2)^-1 (gamma + 3)^-1/2`, a cubic in gamma. Raises
    ValueError for a width beyond that.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"ema is {sigma_rel}, it must lie between 0 and {12**-0.5:.3f}")
    inverse = sigma_rel**-2
    companion = [[-7, inverse - 16, inverse - 12], [1, 0, 0], [0, 1, 0]]
    return torch.linalg.eigvals(torch.tensor(companion, dtype=torch.float64)).real.max().item()


def decay(step: int, gamma: float) -> float:
    """beta of update number `step` >= 1: `(1 - 1/step)^(gamma + 1)` (EDM2, equation 127)."""
    return (1 - 1 / step) ** (gamma + 1)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (A, B) of profiles, whose rows are (step, gamma) (EDM2, appendix C).

    `p(s) = (gamma + 1) s^gamma / t^(gamma + 1)` for s in [0, t], of the average at step t.
    """
    (t_a, y_a), (t_b, y_b) = a.T[:, :, None], b.T[:, None, :]
    ratio = torch.minimum(t_a, t_b)
    shares = (ratio / t_a) ** (y_a + 1) * (ratio / t_b) ** (y_b + 1)
    return (y_a + 1) * (y_b + 1) / (y_a + y_b + 1) * shares / ratio


def reconstruction(
    known: Sequence[tuple[int, float]], step: int, sigma_rel: float
) -> tuple[Tensor, float]:
    """Factors (K,), of sum 1, by which K averages make that of another width (EDM2, appendix C).

    `known` are their (step, sigma_rel), wanted is the average after `step` steps. The factors are
    the least-squares ones; also given is what the profile p misses of the one wanted, as
    |p - p_wanted| / |p_wanted|. Float64.
    """
    profiles = [(float(t), power_exponent(width)) for t, width in [*known, (step, sigma_rel)]]
    every = torch.tensor(profiles, dtype=torch.float64)
    products = _products(every, every)
    A, b = products[:-1, :-1], products[:-1, -1]
    factors = torch.linalg.lstsq(A, b[:, None], driver="gelsd").solution[:, 0]
    factors /= factors.sum()
    missed = (products[-1, -1] - 2 * factors @ b + factors @ A @ factors) / products[-1, -1]
    return factors, missed.clamp_min(0).sqrt().item()


class PowerEMA:
    """The running average of `weights`, which training changes in place: a module's state.

    With `device`, the average is kept there instead of beside the weights.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        sigma_rel: float,
        device: torch.device | str | None = None,
    ) -> None:
        self.gamma = power_exponent(sigma_rel)
        self.step, self.weights = 0, weights
        self.average = {k: v.detach().to(device, copy=True) for k, v in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after one more optimiser step."""
        self.step += 1
        averages, now = [], []
        for key, value in self.weights.items():
            average = self.average[key]
            if value.is_floating_point():
                averages.append(average)
                now.append(value.to(average))
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, now, 1 - decay(self.step, self.gamma))

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"step": self.step, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]
        for key, value in state["average"].items():
            self.average[key].copy_(value)
