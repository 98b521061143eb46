"""Precision and recall: how many samples look real, and how much of the real they cover."""

from __future__ import annotations

import torch
from torch import Tensor

from scm_core.evaluation.metrics.frechet import check_features

CHUNK = 1024  # rows of the distance matrix that are in memory at a time


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall, each in [0, 1], of features ``fake`` (M, D) against ``real`` (N, D).

    Precision is the share of fakes that lie within the distance of some real sample to its k-th
    nearest real neighbour; recall the same with the roles exchanged: Kynkäänniemi et al. 2019
    (arXiv 1904.06991), equations 1 and 2. Raises ValueError for k < 1, k or fewer samples, or
    unequal D.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, not {k}")
    real, fake = check_features(real, fake, least=k + 1)
    covered, reached = _inside(real, _radii(real, k), fake), _inside(fake, _radii(fake, k), real)
    return covered.double().mean().item(), reached.double().mean().item()


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest neighbour, itself not counted, (N,)."""
    radii = []
    for start in range(0, len(points), CHUNK):
        distances = torch.cdist(points[start : start + CHUNK], points)
        rows = torch.arange(len(distances), device=points.device)
        distances[rows, rows + start] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _inside(centres: Tensor, radii: Tensor, points: Tensor) -> Tensor:
    """Whether each point lies in a ball around some centre, bool (N,)."""
    chunks = points.split(CHUNK)
    return torch.cat([(torch.cdist(chunk, centres) <= radii).any(1) for chunk in chunks])
