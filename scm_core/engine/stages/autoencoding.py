"""The stage before the teacher, of modalities whose samples are latents: an autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from scm_core.base import distributed
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.engine.stages.stage import Stage

NOISE = 0.1  # of a channel's standard deviation, added to latents: samples will not be exact either
SMOOTH = 0.1  # errors below this, in units of the data, count by their square
SIZE = 1e-3  # weight of the latents' mean square, without which their scale would drift


class Autoencoding(Stage):
    """Learns to give samples back through its latents; `backbone` has `encode` and `decode`."""

    watched_name = "error"
    evaluated_by = ("encode", "decode")

    def training_step(self, batch: Batch, _: int) -> Tensor:
        z = self.backbone.encode(batch.x)
        spread = z.detach().transpose(0, 1).flatten(1).std(1).view(-1, *[1] * (z.ndim - 2))
        x = self.backbone.decode(z + NOISE * spread * distributed.randn_like(z))
        error = (x - batch.x) / SIGMA_DATA
        loss = functional.smooth_l1_loss(error, torch.zeros_like(error), beta=SMOOTH)
        loss = loss + SIZE * z.float().square().mean()
        rms = error.detach().flatten(1).square().mean(1).sqrt()
        self.watch(loss.expand(len(rms)), torch.zeros_like(rms), rms)
        return loss
