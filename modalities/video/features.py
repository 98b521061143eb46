"""The features in which generated clips are compared with real ones: frames and their motion."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from modalities.common.efficientnet import EfficientNetLite0
from scm_core.contract.spec import Features

FRAMES = 8  # looked at in a clip, evenly spaced
COARSE = 8  # cells a side, on which pixels, motion and edges are pooled


class FramesAndMotion(Features):
    """Uint8 clips (B, 3, T, H, W) to (B, 2560): what frames show, and how that changes.

    The first half is the mean over frames of EfficientNet-Lite0's pooled features (`FRAMES` of a
    clip), the second the mean absolute change from one of these frames to the next. A clip that
    stands still, or whose frames are in disorder, differs from real ones in the second half.
    """

    name = "efficientnet_lite0_frames_and_motion"

    def __init__(self) -> None:
        """Load the image network; UserError when its package is not installed."""
        self.network = EfficientNetLite0()

    @torch.inference_mode()
    def __call__(self, media: Tensor) -> Tensor:
        """Features float32 (B, 2560)."""
        places = torch.linspace(0, media.shape[2] - 1, min(FRAMES, media.shape[2])).round().long()
        frames = media[:, :, places].transpose(1, 2)
        features = self.network(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        motion = features.diff(dim=1).abs() if len(places) > 1 else torch.zeros_like(features)
        return torch.cat([features.mean(1), motion.mean(1)], 1)


class PixelsMotionEdges(Features):
    """What is where, what moves and what has edges: uint8 clips (B, 3, T, H, W) -> (B, 384).

    On a grid of 8 x 8, averaged over all frames: the colours, the absolute change of brightness to
    the next frame, and to the next pixel in either direction. Nothing is learnt.
    """

    name = "pixels_motion_edges"

    @torch.inference_mode()
    def __call__(self, media: Tensor) -> Tensor:
        """Features float32 (B, 384)."""
        x = media.float() / 127.5 - 1
        grey = x.mean(1, keepdim=True)
        changes = [grey.diff(dim=dim).abs() for dim in (2, 3, 4) if grey.shape[dim] > 1]
        parts = [functional.adaptive_avg_pool2d(part.mean(2), COARSE) for part in (x, *changes)]
        return torch.cat([part.flatten(1) for part in parts], 1)
