"""Between samples x, float32 (B, 1, length), and windows of the potential, float32 (B, length)."""

from pathlib import Path

from scm_core.contract.spec import SIGMA_DATA, Codec, Features, Scorer
from scm_core.data import media

THRESHOLD = -0.2  # a spike rises above it


class WindowCodec(Codec):
    """Standardises by one mean and one deviation: the recording drifts little."""

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


class Subsampled(Features):
    """What distances are measured in: every fourth value of the windows themselves."""

    name = "potential"

    def __call__(self, windows):
        return windows[:, ::4]


class Spikes(Scorer):
    """The number of spikes, whose mean over samples should be that of real windows."""

    def __call__(self, windows, condition):
        above = windows > THRESHOLD
        return {"spikes": (above[:, 1:] & ~above[:, :-1]).sum(1).float()}
