"""What the tests of hostile files share: payloads, bombs, and a reader of each kind of media."""

import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "image" / "student.safetensors"
READ = ("picture", "sound", "video")


class Payload:
    """What writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


def pickled(mark: Path) -> bytes:
    """A pickle that writes the file ``mark`` when it is loaded."""
    return pickle.dumps(Payload(mark))


def torch_file(mark: Path, path: Path) -> Path:
    """The same as torch writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"generator": Payload(mark), "state_dict": Payload(mark)}, path)
    return path


def read(kind: str, path: Path, limits: Any = None) -> torch.Tensor:
    """What the reader of one kind makes of a file."""
    from modalities.audio import recordings
    from modalities.image import folder as pictures
    from modalities.video import folder as videos
    from scm_core.engine import checkpoint

    if kind == "model":
        return torch.zeros(checkpoint.load(path).shape)
    if kind == "picture":
        return pictures.decode_file(path, 16, 3, limits)
    if kind == "sound":
        return recordings.decode_file(path, 8000, limits)
    return videos.read_frames(path, 4, 16, limits)


def png(path: Path, width: int, height: int, rows: int) -> Path:
    """A grey PNG of black pixels, of which it holds ``rows`` rows; a gigapixel is small."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    packer, row = zlib.compressobj(1), bytes(1 + -(-width // 8))
    packed = [packer.compress(row) for _ in range(rows)] + [packer.flush()]
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(packed)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def gif(path: Path, width: int, height: int, frames: int, hundredths: int = 2) -> Path:
    """A GIF of black frames of one pixel each on a canvas of this size; a frame takes 24 bytes."""
    header = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    control = b"\x21\xf9\x04\x00" + struct.pack("<H", hundredths) + b"\x00\x00"
    frame = control + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    path.write_bytes(header + frame * frames + b"\x3b")
    return path


def wav(path: Path, rate: int, seconds: float, stated: int | None = None) -> Path:
    """A 16-bit mono WAV whose samples are a hole in the file, so that any length costs nothing."""
    size = int(2 * rate * seconds)
    whole = min(36 + size, 0xFFFFFFFF)
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate & 0xFFFFFFFF, 2, 16)
    data = b"data" + struct.pack("<I", stated or min(size, 0xFFFFFFFE))
    path.write_bytes(b"RIFF" + struct.pack("<I", whole) + b"WAVEfmt " + form + data)
    with path.open("r+b") as file:
        file.truncate(44 + size)
    return path


def flac(path: Path, rate: int, seconds: float, stated: int | None = None) -> Path:
    """Silence, of which FLAC packs 65,535 samples into 16 bytes; the header may state others."""
    total, size = round(rate * seconds), 65_535
    count = total if stated is None else stated
    about = struct.pack(">HH", size, size) + bytes(6)
    about += (rate << 44 | 15 << 36 | count).to_bytes(8, "big") + bytes(16)
    frames = [b"fLaC\x80" + len(about).to_bytes(3, "big") + about]
    for number in range(-(-total // size)):
        block = min(size, total - number * size)
        coded = chr(number).encode("utf-8", "surrogatepass")
        head = b"\xff\xf8\x70\x08" + coded + struct.pack(">H", block - 1)
        frame = head + bytes([_crc(head, 8, 0x07)]) + bytes(3)
        frames.append(frame + _crc(frame, 16, 0x8005).to_bytes(2, "big"))
    path.write_bytes(b"".join(frames))
    return path


def _crc(content: bytes, bits: int, polynomial: int) -> int:
    remainder = 0
    for byte in content:
        remainder ^= byte << bits - 8
        for _ in range(8):
            remainder <<= 1
            if remainder >> bits:
                remainder ^= polynomial | 1 << bits
    return remainder


def video(path: Path, times: list[int], width: int = 32, height: int = 32) -> Path:
    """Black frames shown at these seconds, by the codec that the container's players know."""
    with av.open(str(path), "w") as container:
        codec = {".webm": "libvpx", ".mpg": "mpeg2video", ".avi": "mpeg4"}.get(path.suffix)
        stream = container.add_stream(codec or "libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for time in times:
            picture = np.full((height, width, 3), 7 * time % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = 25 * time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def aac(path: Path, rate: int, seconds: float) -> Path:
    """Silence as a bare stream, of which no header says how long it is."""
    with av.open(str(path), "w", format="adts") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        for start in range(0, int(rate * seconds), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def described(path: Path, **metadata: object) -> Path:
    """The shipped image student with other metadata."""
    with safe_open(SHIPPED, "pt") as file:
        kept = file.metadata()
    save_file(load_file(SHIPPED), path, {**kept, **{k: json.dumps(v) for k, v in metadata.items()}})
    return path


def model(path: Path, **changed: Any) -> Path:
    """A student of audio of two kilobytes, and what is changed in its metadata."""
    with safe_open(SHIPPED.parents[1] / "audio" / "student.safetensors", "pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    for key, value in changed.items():
        section, _, rest = key.partition("__")
        if rest:
            metadata["config"][section] = {**metadata["config"][section], rest: value}
        else:
            metadata[section] = value
    if "mel" in metadata["config"]:
        metadata["statistics"]["mel"] = metadata["config"]["mel"]
    metadata["config"]["data"]["font"] = None
    save_file({"x": torch.zeros(1)}, path, {k: json.dumps(v) for k, v in metadata.items()})
    return path


def stated(key: str) -> dict:
    with safe_open(SHIPPED, "pt") as file:
        return json.loads(file.metadata()[key])
