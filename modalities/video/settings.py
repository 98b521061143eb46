"""The video modality's section `data`."""

from __future__ import annotations

from dataclasses import dataclass

from scm_core.base.arguments import place


@dataclass
class VideoData:
    """Which clips to train on, and how they are fed.

    ``name`` is ``sprites``, ``folder`` or ``ucf101``; ``root`` the folder of Fashion-MNIST, of
    video files, or of UCF101. A clip is ``frames`` frames of ``size`` x ``size`` pixels, shown at
    ``fps`` a second. Of sprites ``clips`` are composed for training, by ``seed``; a file's clips
    start every ``stride`` frames (default: one begins where the last one ends). With a
    ``text_encoder``, or a pretrained pipeline that has one, they are a folder of captions.
    """

    name: str = "sprites"
    root: str | None = place()
    batch_size: int = 128
    workers: int = 0
    frames: int = 16
    size: int = 32
    fps: float = 8.0
    clips: int = 20_000
    seed: int = 0
    stride: int | None = None
    text_encoder: str | None = place()
