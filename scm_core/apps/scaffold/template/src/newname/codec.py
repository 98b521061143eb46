"""Between samples x, float32 (B, 1, length), and media, here float32 (B, length)."""

from pathlib import Path

from scm_core.contract import spec
from scm_core.data import media as pictures


class Codec(spec.Codec):
    def __init__(self, statistics):
        self.mean, self.scale = statistics["mean"], statistics["std"] / spec.SIGMA_DATA

    def encode(self, media):
        return ((media - self.mean) / self.scale)[:, None]

    def decode(self, x):
        return x[:, 0] * self.scale + self.mean

    def save(self, media, path):
        path = Path(f"{path}.txt")
        path.write_text("".join(f"{value:.5g}\n" for value in media.tolist()))
        return path

    def preview(self, media):
        return pictures.image_grid(pictures.curve_images(media))
