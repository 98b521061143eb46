"""Everything that is written to be looked at or listened to: pictures, clips and sound files.

Files say how they were made where `scm_core.data.provenance.stating` has something to say.
"""

from __future__ import annotations

import itertools
import math
import wave
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional

from scm_core.base.errors import UserError
from scm_core.base.files import whole
from scm_core.data import provenance

GRID_WIDTH = 640  # tiny images are magnified until a grid is about this wide
PADDING = 2
GIF_SIZE = 128  # tiny clips are magnified until a side is about this long
H264 = ("libx264", "yuv420p", "16")  # codec, pixels, and a quality that eyes take for lossless
QUICK = {"preset": "veryfast", "threads": "1"}  # short clips are done before threads have begun


def image_grid(images: Tensor, columns: int | None = None) -> Tensor:
    """Uint8 images (B, C, H, W), C = 1, 3 or 4, as one picture, uint8 (H, W, 3), on white.

    Without ``columns`` the grid is about square; tiny images are magnified by whole factors, and
    what RGBA images leave transparent is white.
    """
    if images.ndim != 4 or images.shape[0] < 1 or images.shape[1] not in (1, 3, 4):
        raise ValueError(f"images must be (B, 1 | 3 | 4, H, W), not {tuple(images.shape)}")
    images = rgb(images.detach().cpu()).round().to(torch.uint8)
    count, _, height, width = images.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = -(-count // columns)
    scale = max(1, min(8, GRID_WIDTH // (columns * width)))
    images = functional.interpolate(images, scale_factor=scale) if scale > 1 else images
    cell_height, cell_width = height * scale + PADDING, width * scale + PADDING
    picture = torch.full(
        (rows * cell_height + PADDING, columns * cell_width + PADDING, 3), 255, dtype=torch.uint8
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * cell_height + PADDING, (i % columns) * cell_width + PADDING
        picture[top : top + height * scale, left : left + width * scale] = image.permute(1, 2, 0)
    return picture


def write_file(path: str | Path, write: Callable[[Any], Any]) -> Path:
    """Write a file whole and signed, or not at all; return its path.

    Raises UserError when it cannot be written.
    """
    path, sign = Path(path), provenance.signature()
    try:
        with whole(path) as part, open(part, "wb") as file:
            if sign:
                write(content := BytesIO())
                file.write(sign(content, path.name))
            else:
                write(file)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path} cannot be written: {reason}; free space or choose another out=."
        ) from error
    return path


def write_png(picture: Tensor, path: str | Path) -> Path:
    """Write a uint8 picture (H, W) or (H, W, 1 | 3 | 4) atomically; return its path.

    Raises UserError when it cannot be written.
    """
    pixels = picture.detach().cpu().contiguous().numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    info = PngInfo()
    if said := provenance.comment():
        info.add_itxt(provenance.KEY, said)
    return write_file(path, lambda file: image.save(file, format="PNG", pnginfo=info))


def spectrogram_images(log_mels: Tensor) -> Tensor:
    """Log-mels (B, mels, frames) as uint8 images (B, 3, mels, frames), low notes at the bottom.

    Black is silence, ln 1e-5; the brightest is a magnitude of e, which few sounds reach.
    """
    from matplotlib import colormaps  # half a second: only to draw

    low, high = math.log(1e-5), 1.0
    colours = torch.from_numpy(colormaps["magma"](range(256), bytes=True)[:, :3].copy())
    levels = ((log_mels.detach().cpu().float() - low) / (high - low) * 255).round().clamp(0, 255)
    return colours[levels.long().flip(1)].permute(0, 3, 1, 2)


def curve_images(signals: Tensor, height: int = 48) -> Tensor:
    """Signals (B, length) as uint8 images (B, 1, height, length), black curves of one scale."""
    signals = signals.detach().cpu().float()
    low, high = signals.min(), signals.max()
    row = ((high - signals) / (high - low).clamp(min=1e-12) * (height - 1)).round()
    before = torch.cat([row[:, :1], row[:, :-1]], dim=1)
    upper, lower = (end[:, None] for end in (row.minimum(before), row.maximum(before)))
    y = torch.arange(height)[:, None]
    return torch.where((y >= upper) & (y <= lower), 0, 255).to(torch.uint8)[:, None]


def write_sound(waveform: Tensor, path: str | Path, sample_rate: int) -> Path:
    """Write a waveform (samples,) as 16 bits atomically; return its path.

    The name's ending chooses .wav or .flac. What exceeds [-1, 1] is made quieter, not clipped.
    Raises UserError when it cannot be written.
    """
    values = waveform.detach().cpu().double()
    values = values / values.abs().amax().clamp(min=1)
    samples = (values * 32767).round().to(torch.int16).numpy()
    write = {".wav": _write_wav, ".flac": _write_flac}[Path(path).suffix]
    return write_file(path, lambda file: write(file, samples, sample_rate))


def contact_sheet(clips: Tensor) -> Tensor:
    """Uint8 clips (B, C, T, H, W), C = 1 or 3, as one picture, uint8 (H, W, 3): a clip a row."""
    batch, channels, frames, *size = clips.shape
    return image_grid(clips.transpose(1, 2).reshape(batch * frames, channels, *size), frames)


def write_video(clip: Tensor, path: str | Path, fps: float, lossless: bool = False) -> Path:
    """Write a uint8 clip (3, T, H, W) as MP4 atomically; return its path.

    H.264 in yuv420p plays everywhere; ``lossless`` keeps every pixel, in rgb24, which fewer players
    know. Sides must be even otherwise. Raises UserError when it cannot be written.
    """
    import av

    frames = clip.detach().cpu().permute(1, 2, 3, 0).contiguous().numpy()
    codec, layout, quality = ("libx264rgb", "rgb24", "0") if lossless else H264
    rate = Fraction(fps).limit_denominator(1001)

    def write(file: Any) -> None:
        with av.open(file, "w", format="mp4") as container:
            _tag(container)
            stream = container.add_stream(codec, rate=rate, options={"crf": quality, **QUICK})
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], layout
            for frame in frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode(None):
                container.mux(packet)

    return write_file(path, write)


def write_gif(clip: Tensor, path: str | Path, fps: float) -> Path:
    """Write a uint8 clip (3, T, H, W) as a GIF that loops, atomically; return its path.

    Tiny clips are magnified. A GIF knows 256 colours a frame, and hundredths of a second, to which
    times are rounded, at least two a frame.
    """
    scale = max(1, GIF_SIZE // max(clip.shape[-2:]))
    large = functional.interpolate(clip.detach().cpu().transpose(0, 1), scale_factor=scale)
    frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in large]
    first, *rest = frames
    ends = [round(100 * i / fps) for i in range(len(frames) + 1)]
    durations = [10 * max(2, end - begin) for begin, end in itertools.pairwise(ends)]
    options = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
    if said := provenance.comment():
        options["comment"] = said.encode()
    return write_file(path, lambda file: first.save(file, format="GIF", **options))


def _write_wav(file: Any, samples: np.ndarray, sample_rate: int) -> None:
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(sample_rate)
        sound.writeframes(samples.astype("<i2").tobytes())
    if said := provenance.comment():
        file.write(provenance.info_chunk(said))
        size = file.tell() - 8
        file.seek(4)
        file.write(size.to_bytes(4, "little"))


def _write_flac(file: Any, samples: np.ndarray, sample_rate: int) -> None:
    import av

    with av.open(file, "w", format="flac") as container:
        _tag(container)
        stream = container.add_stream("flac", rate=sample_rate, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = sample_rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def _tag(container: Any) -> None:
    if said := provenance.comment():
        container.metadata["comment"] = said


def rgb(images: Tensor) -> Tensor:
    """Uint8 grey, RGB or RGBA images as float32 RGB in 0 to 255; what is transparent is white."""
    values = images.float()
    if values.shape[1] == 4:
        alpha = values[:, 3:] / 255
        return values[:, :3] * alpha + 255 * (1 - alpha)
    return values.expand(-1, 3, -1, -1)
