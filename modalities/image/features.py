"""Features of pictures in which nothing is learnt: a judge of another origin than networks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from scm_core.contract.spec import Features
from scm_core.data.media import rgb

LEVELS, FILTERS, PATCH = 3, 16, 7  # bands of the pyramid; filters of each, and their size in pixels
COARSE, REGIONS = 8, 2  # the picture itself on so many cells a side; regions a side of a band


class PatchProjections(Features):
    """What patches of a Laplacian pyramid hold: uint8 pictures (B, C, H, W) -> (B, 384).

    Bands and 7 x 7 patches are those of the sliced Wasserstein distance of Karras et al. 2018
    (arXiv 1710.10196, section 5), with 16 fixed random projections of a patch; of each the mean
    magnitude in every quarter of the band is a feature, so that FD and KID apply. Beside them
    stand the picture's own pixels on a grid of 8 x 8. Fine grain, edges and blur show in the bands,
    shapes and colours in the grid. Grey, RGB and RGBA pictures are taken.
    """

    name = "patch_projections"

    def __init__(self) -> None:
        """Draw the filters, the same at every time."""
        filters = torch.randn(FILTERS, 3, PATCH, PATCH, generator=torch.Generator().manual_seed(0))
        filters = filters - filters.mean((2, 3), keepdim=True)
        self.filters = filters / filters.flatten(1).norm(dim=1)[:, None, None, None]

    @torch.inference_mode()
    def __call__(self, media: Tensor) -> Tensor:
        """Features float32 (B, 384)."""
        return torch.cat([self._features(chunk) for chunk in media.split(256)])

    def _features(self, pictures: Tensor) -> Tensor:
        x = rgb(pictures) / 127.5 - 1
        found = [functional.adaptive_avg_pool2d(x, COARSE)]
        for _ in range(LEVELS):
            smaller = functional.avg_pool2d(x, 2, ceil_mode=True)
            band = x - functional.interpolate(smaller, x.shape[2:], mode="bilinear")
            magnitude = functional.conv2d(band, self.filters.to(x.device), padding=PATCH // 2).abs()
            found.append(functional.adaptive_avg_pool2d(magnitude, REGIONS))
            x = smaller
        return torch.cat([part.flatten(1) for part in found], 1)
