"""The first stage: a TrigFlow diffusion model (arXiv 2410.11081, section 3)."""

from __future__ import annotations

from torch import Tensor

from scm_core.contract.fields import drop_condition
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.engine.stages.stage import NoisedStage
from scm_core.method.losses.diffusion import diffusion_loss


class Teacher(NoisedStage):
    """Learns the velocity, with the condition dropped at random so that it can be guided."""

    watched_name = "error"

    def training_step(self, batch: Batch, _: int) -> Tensor:
        x_t, velocity, t = self.noised(batch.x)
        condition = drop_condition(self.schema, batch.condition, self.config.condition_dropout)
        F = self.backbone(x_t / SIGMA_DATA, t, condition)
        loss = diffusion_loss(F, velocity, self.weight(t), SIGMA_DATA)
        error = (SIGMA_DATA * F.detach() - velocity).flatten(1).square().mean(1)
        self.watch(loss, t, error / SIGMA_DATA**2)
        return loss.mean()
