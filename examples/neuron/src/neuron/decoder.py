"""Between samples x, float32 (B, 1, length), and windows of the potential, float32 (B, length)."""

from pathlib import Path

from scm_core.contract.spec import SIGMA_DATA
from scm_core.data import media

THRESHOLD = -0.2  # a spike rises above it


class Decoder:
    """Standardises by one mean and one deviation: the recording drifts little."""

    exact = True

    def __init__(self, statistics):
        self.mean, self.scale = statistics["mean"], statistics["std"] / SIGMA_DATA

    def encode(self, windows):
        return ((windows - self.mean) / self.scale)[:, None]

    def decode(self, x):
        return x[:, 0] * self.scale + self.mean

    def save(self, window, path):
        media.write_png(self.preview(window[None]), f"{path}.png")
        table = Path(f"{path}.csv")
        table.write_text("".join(f"{value:.4f}\n" for value in window.tolist()))
        return table

    def preview(self, windows):
        return media.image_grid(media.curve_images(windows))


def features(windows):
    """What distances are measured in: the windows themselves, thinned out."""
    return windows[:, ::4]


features.name = "potential"


def judge(windows, condition):
    """The number of spikes, whose mean over samples should be that of real windows."""
    above = windows > THRESHOLD
    return {"spikes": (above[:, 1:] & ~above[:, :-1]).sum(1).float()}
