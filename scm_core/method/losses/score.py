"""The score regulariser of rCM (arXiv 2510.08431), the loss of distribution matching distillation.

The consistency loss pulls the student to the mean of what it is unsure of, which blurs. The
difference between the scores of what the student draws and of what the teacher would draw says in
which direction each sample is more likely under the teacher (Yin et al. 2023, arXiv 2311.18828).
"""

from __future__ import annotations

from torch import Tensor

from scm_core.method.losses.weighting import per_sample
from scm_core.method.trigflow import expand_time


def score_loss(x0: Tensor, fake: Tensor, teacher: Tensor) -> Tensor:
    """`1 / (2 D) |x0 - sg[x0 - (D_fake - D_teacher) / mean|x0 - D_teacher|]|^2` per sample, (B,).

    `x0` are samples of the student with their graph; `fake` and `teacher` are what the two models
    make of them when noised and denoised. The graph reaches `x0` alone.
    """
    still, fake, teacher = x0.detach(), fake.detach(), teacher.detach()
    scale = (still - teacher).abs().flatten(1).mean(1)
    step = (fake - teacher) / expand_time(scale, x0).clamp_min(1e-4)
    return per_sample(x0 - (still - step)) / 2
