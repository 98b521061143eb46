"""The learned balance of a loss over t."""

from __future__ import annotations

from torch import Tensor


def per_sample(error: Tensor) -> Tensor:
    """The mean square over everything but the batch, `|error|^2 / D`, (B,) in float32 or better."""
    return error.flatten(1).square().mean(dim=1)


def learned(loss: Tensor, weight: Tensor) -> Tensor:
    """`e^w L - w`, minimal in w where `e^w = 1 / L` (arXiv 2410.11081, equation 6); (B,) each."""
    return weight.exp() * loss - weight
