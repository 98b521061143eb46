"""The Fréchet distance between two sets of features, each taken for a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance between features (N, D) and (M, D), in their unit squared.

    |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Heusel et al. 2017 (arXiv 1706.08500),
    equation 6. Raises ValueError for fewer than two samples or unequal D.
    """
    a, b = check_features(a, b, least=2)
    mean_a, root_a = _mean_and_root(a)
    mean_b, root_b = _mean_and_root(b)
    # With S = R^T R the trace of (S_a S_b)^(1/2) is the sum of the singular values of R_a R_b^T:
    # no square root of a nearly singular covariance, whose rounding errors would be magnified.
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum()
    distance = distance + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(distance.item(), 0.0)


def check_features(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both sets in float64; ValueError unless they are (N, D) with N >= least and the same D."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D): {tuple(a.shape)}, {tuple(b.shape)}")
    if min(len(a), len(b)) < least:
        raise ValueError(f"{least} samples or more are needed: there are {len(a)} and {len(b)}")
    return a.double(), b.double()


def _mean_and_root(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and R, at most (D, D), with R^T R the covariance."""
    mean = features.mean(0)
    centred = (features - mean) / (len(features) - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R
