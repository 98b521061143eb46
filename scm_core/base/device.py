"""What this machine computes with, and how precisely."""

from __future__ import annotations

import os

import torch


def resolve_precision(name: str, accelerator: str = "auto") -> str:
    """Lightning's name for a precision; `auto` picks what the accelerator is fast at."""
    if name != "auto":
        return name
    cuda = torch.cuda.is_available() and accelerator in ("auto", "cuda", "gpu")
    if cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "32-true"
    cpu = accelerator in ("auto", "cpu")
    # A bf16 matrix product is ten times slower than float32 on a CPU that has to emulate it.
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if cpu and native else "32-true"


def best_device() -> torch.device:
    """The best device of this process."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    place = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))
    return torch.device("cuda", int(place))
