"""The loss by which an autoencoder learns to give samples back through its latents."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from scm_core.method.objectives.base import Batch, Objective, Student, rms

NOISE = 0.1  # of a channel's standard deviation, added to latents: samples will not be exact either
SMOOTH = 0.1  # errors below this, in units of the data, count by their square
SIZE = 1e-3  # weight of the latents' mean square, without which their scale would drift


class Reconstruction(Objective):
    """The backbone has `encode` and `decode`; the error is smooth L1, of noised latents."""

    cost = 3
    methods = ("encode", "decode")

    def loss(self, student: Student, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        z = student.backbone.encode(batch.x)
        spread = z.detach().transpose(0, 1).flatten(1).std(1).view(-1, *[1] * (z.ndim - 2))
        x = student.backbone.decode(z + NOISE * spread * student.noise(z) / student.sigma_data)
        error = (x - batch.x) / student.sigma_data
        loss = functional.smooth_l1_loss(
            error, torch.zeros_like(error), beta=SMOOTH, reduction="none"
        )
        loss = loss.flatten(1).mean(1) + SIZE * z.float().square().flatten(1).mean(1)
        return loss, {"error": rms(x - batch.x, student.sigma_data)}
