"""When a student of a pretrained network is evaluated: by this package, and by diffusers.

Both take one or two steps at the same times, so that they draw the same samples. The first is the
noisiest that the network knows, the last the nearest to what is asked that a scheduler of diffusers
can be told of, by a configuration that its pipeline loads and that says all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from scm_core.base.errors import UserError
from scm_core.method.conversions import RectifiedFlow, VariancePreserving

FLOW, VP = "FlowMatchLCMScheduler", "LCMScheduler"
NEAR = 0.2  # how far from what is asked the last time may be for diffusers' sake
MOST = 50  # steps that LCMScheduler is prepared for
KEPT = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
KEPT += ("num_train_timesteps", "prediction_type", "steps_offset")


def ends(path: nn.Module, last: float) -> tuple[float, float] | None:
    """TrigFlow's times of the first step, and of the one near `last`; None where it may be any."""
    if isinstance(path, RectifiedFlow):
        return math.pi / 2, last
    if isinstance(path, VariancePreserving):
        angles = _angles(path)
        second = _of_scheduler(angles, last)
        if abs(second - last) > NEAR:
            second = float(angles[(angles - last).abs().argmin()])
        return float(angles[-1]), second
    return None


def scheduler(
    path: nn.Module, config: dict[str, Any], own_sigmas: bool, last: float
) -> dict[str, Any] | None:
    """The configuration of diffusers' scheduler that visits `ends`; None where it has none.

    `config` is that of the teacher's own, and `own_sigmas` whether the pipeline hands its scheduler
    the sigmas 1, ..., 2/n, 1/n for n steps. UserError for a last time that it cannot be told of.
    """
    if isinstance(path, RectifiedFlow):
        return _flow(config.get("num_train_timesteps", 1000), own_sigmas, math.tan(last)) | {
            "invert_sigmas": config.get("invert_sigmas", False)
        }
    if isinstance(path, VariancePreserving):
        if abs((found := _of_scheduler(_angles(path), last)) - last) > NEAR:
            raise UserError(
                f"student.last_time={last:.2f}: in two steps diffusers' {VP} can end at "
                f"{found:.2f}, not at that; name student.last_time={found:.2f}"
            )
        kept = {key: config[key] for key in KEPT if key in config}
        return {"_class_name": VP, **kept, "original_inference_steps": _grid(_angles(path), last)}
    return None


def _flow(steps: int, own_sigmas: bool, ratio: float) -> dict[str, Any]:
    """A shift multiplies u / (1 - u), noise over data, which the last step is to see at `ratio`.

    The pipeline's sigmas have it at 1 for two steps. Without them the scheduler goes from u = 1 to
    u = 1 / steps, which it has shifted once before it shifts all; what is between 1 and the shifted
    end it then spaces evenly in log u.
    """
    if own_sigmas:
        return {"_class_name": FLOW, "num_train_timesteps": steps, "shift": ratio}
    shift = math.sqrt(ratio * (steps - 1))
    named = {"_class_name": FLOW, "num_train_timesteps": steps, "shift": shift}
    return named | {"use_exponential_sigmas": True}


def _angles(path: VariancePreserving) -> Tensor:
    """TrigFlow's time of each of the network's own, float64."""
    return torch.cat([path.low.double().cpu(), torch.tensor([path.end], dtype=torch.float64)])


def _of_scheduler(angles: Tensor, last: float) -> float:
    """The time nearest to `last` at which LCMScheduler can end in two steps."""
    return float(angles[_second(_grid(angles, last), len(angles))])


def _grid(angles: Tensor, last: float) -> int:
    """How many steps LCMScheduler is to choose from, for two to end nearest to `last`.

    They divide all, so that the first step is at the last of the network's times.
    """
    steps = len(angles)
    sizes = [size for size in range(min(MOST, steps), 1, -1) if steps % size == 0]
    return min(sizes, key=lambda size: abs(float(angles[_second(size, steps)]) - last))


def _second(size: int, steps: int) -> int:
    """The network's time of the second of two steps from a grid of `size`, as LCMScheduler does."""
    return (size - size // 2) * (steps // size) - 1
