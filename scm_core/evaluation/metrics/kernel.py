"""The kernel distance (KID): a maximum mean discrepancy without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from scm_core.evaluation.metrics.frechet import check_features


def kernel_distance(
    a: Tensor,
    b: Tensor,
    subsets: int = 50,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Mean and std, over random subsets, of the unbiased squared MMD of features (N, D), (M, D).

    The kernel is (x.y / D + 1)^3, Bińkowski et al. 2018 (arXiv 1801.01401), section 4. A subset
    holds at most as many samples as the smaller set. ``generator`` is a CPU generator. Raises
    ValueError for fewer than two samples or unequal D.
    """
    a, b = check_features(a, b, least=2)
    size = min(subset_size, len(a), len(b))
    values = torch.stack(
        [
            _squared_mmd(_subset(a, size, generator), _subset(b, size, generator))
            for _ in range(subsets)
        ]
    )
    return values.mean().item(), values.std(correction=0).item()


def _subset(features: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    chosen = torch.randperm(len(features), generator=generator)[:size]
    return features[chosen.to(features.device)]


def _squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """The U-statistic for two sets of one size: pairs of a sample with itself are left out."""
    n = len(a)
    within = [(k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in (_cubic(a, a), _cubic(b, b))]
    return within[0] + within[1] - 2 * _cubic(a, b).mean()


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3
