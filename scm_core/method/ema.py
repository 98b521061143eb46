"""Power-function averaging of weights (Karras et al. 2024, EDM2, arXiv 2312.02696, section 3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from scm_core.engine.sharding import gathered, local, scattered


def power_exponent(sigma_rel: float) -> float:
    """gamma of a profile whose relative width is `sigma_rel` in (0, 0.28) (EDM2, algorithm 2).

    `sigma_rel = (gamma + 1)^1/2 (gamma + 2)^-1 (gamma + 3)^-1/2`, a cubic in gamma.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"ema is {sigma_rel}, it must lie between 0 and {12**-0.5:.3f}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay(step: int, gamma: float) -> float:
    """beta of update number `step` >= 1: `(1 - 1/step)^(gamma + 1)` (EDM2, equation 127)."""
    return (1 - 1 / step) ** (gamma + 1)


class PowerEMA:
    """The running average of a module's parameters and buffers, kept beside the module.

    Of a sharded module each process averages its own shards. With `device`, the average is kept
    there instead of beside the weights.
    """

    def __init__(
        self, module: nn.Module, sigma_rel: float, device: torch.device | str | None = None
    ) -> None:
        self.gamma = power_exponent(sigma_rel)
        self.step = 0
        self.like = module.state_dict()  # the live weights, in place
        self.average = {k: local(v).detach().to(device, copy=True) for k, v in self.like.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights after one more optimiser step."""
        self.step += 1
        averages, now = [], []
        for key, value in self.like.items():
            average = self.average[key]
            if value.is_floating_point():
                averages.append(average)
                now.append(local(value).to(average))
            else:
                average.copy_(local(value))
        torch._foreach_lerp_(averages, now, 1 - decay(self.step, self.gamma))

    def whole(self) -> dict[str, Tensor]:
        """The average, put together from all processes, which all have to ask for it."""
        return {key: gathered(value, self.like[key]) for key, value in self.average.items()}

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"step": self.step, "average": self.whole()}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]
        for key, value in state["average"].items():
            self.average[key].copy_(scattered(value, self.like[key]))
