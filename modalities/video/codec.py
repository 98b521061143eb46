"""Between standardised clips and files to play: MP4, GIF and a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from modalities.common.pixels import PixelCodec
from scm_core.data.media import contact_sheet, write_gif, write_png, write_video


class ClipCodec(PixelCodec):
    """Media are uint8 clips (B, 3, T, H, W); decoding gives back what was encoded."""

    def __init__(self, statistics: dict[str, Any], lossless: bool = False) -> None:
        """Keep what the data module measured: mean and std of u8/127.5 - 1 a channel, and fps.

        ``lossless`` is about the MP4s that are written.
        """
        super().__init__(statistics, grid=3)
        self.fps, self.lossless = statistics["fps"], lossless

    def seconds(self, media: Tensor) -> float:
        """How long each of the clips (B, 3, T, H, W) lasts."""
        return media.shape[2] / self.fps

    def fidelity(self, media: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        """How near encoded and decoded clips are to the clips: PSNR in dB and mean SSIM, (B,)."""
        # A second and a half: only to evaluate.
        from torchmetrics.functional.image import peak_signal_noise_ratio
        from torchmetrics.functional.image import structural_similarity_index_measure as similarity

        given, found = media.float(), decoded.float()
        psnr = peak_signal_noise_ratio(
            found, given, (0.0, 255.0), reduction="none", dim=(1, 2, 3, 4)
        )
        frames = (part.transpose(1, 2).flatten(0, 1) for part in (found, given))
        ssim = similarity(*frames, data_range=255.0, reduction="none")
        return {"psnr": psnr, "ssim": ssim.view(len(media), -1).mean(1)}

    def save(self, media: Tensor, path: str | Path) -> Path:
        """Write one clip (3, T, H, W) as ``path``.mp4, .gif and .png; return the first."""
        write_png(contact_sheet(media[None]), f"{path}.png")
        write_gif(media, f"{path}.gif", self.fps)
        return self.play(media, path)

    def play(self, media: Tensor, path: str | Path) -> Path:
        """Write one clip (3, T, H, W) as ``path``.mp4 alone, a twentieth of the work of `save`."""
        return write_video(media, f"{path}.mp4", self.fps, self.lossless)

    def preview(self, media: Tensor) -> Tensor:
        """One picture of the whole batch: a row of frames for each clip, uint8 (H, W, 3)."""
        return contact_sheet(media)
