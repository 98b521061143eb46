"""Any folder of recordings: class = subfolder or name pattern, unusable files named and skipped."""

from __future__ import annotations

import logging
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
import torchaudio
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from modalities.audio.clips import SILENCE
from modalities.audio.mel import MelSettings, log_mel
from scm_core.cache import CACHE, Table, cached
from scm_core.conditioning import Label
from scm_core.errors import UserError, first_line
from scm_core.folders import Classes, Skipped, classified, identity, in_threads, report
from scm_core.limits import Limits, container, frames
from scm_core.shards import File

log = logging.getLogger(__name__)

SUFFIXES = {
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac"),
    *(".aif", ".aiff", ".au", ".g722", ".mka", ".webm", ".wma"),
}
NORMALISATIONS = ("loudness", "peak", "none")
VERSION = 1  # of the preparation: another one makes other clips
LOUDNESS = -20.0  # LUFS
PEAK = 0.95
SHORTEST = 0.1  # seconds


class Prepared(NamedTuple):
    """A file's clips: where each starts, their log-mels float16, the file's gain."""

    starts: list[int]
    log_mels: Tensor
    gain: float


class Recordings:
    """The recordings of a folder as clips of one length, with log-mels kept in the cache.

    A file longer than a clip gives several, one after the other, the last one if it is at least
    half full; what is shorter is padded with silence at its end. Files that are silent, too short
    or broken are named in a warning and skipped; more than 1 % broken ones stop with their list.
    """

    def __init__(
        self,
        config: Any,
        mel: MelSettings,
        cache: Path = CACHE / "recordings",
        limits: Limits | None = None,
    ) -> None:
        """Decode what ``config`` (an AudioData) names, or read its log-mels from the cache."""
        if config.normalise not in NORMALISATIONS:
            raise UserError(
                f"data.normalise={config.normalise} is none of {', '.join(NORMALISATIONS)}."
            )
        if config.name == "speech_commands":
            folder, classes, held = speech_commands(config.root)
        elif config.root:
            folder = Path(config.root).expanduser()
            classes, held = classified(folder, SUFFIXES, "recording", config.pattern)
        else:
            raise UserError("data.name=folder needs the folder of recordings: data.root=.")
        self.folder, self.mel, self.normalise = folder, mel, config.normalise
        self.limits = limits or Limits()
        self.samples = config.frames * mel.hop
        self.origin = {"source": folder.resolve().name, "licence": config.licence or "not stated"}
        self.paths = [path for files in classes.values() for path in files]
        self.table, facts = cached(cache, self._identity(), self._prepare_all)
        report(folder, facts["skipped"], len(self.paths), "recording")
        file = self.table["file"].long()
        label = [i for i, files in enumerate(classes.values()) for _ in files]
        self.schema = {"label": Label(len(classes), tuple(classes))}
        self.labels = {"label": torch.tensor(label)[file]}
        self.log_mels = self.table["log_mels"]
        self.held_out = torch.tensor([path in held for path in self.paths])[file]
        if self.held_out.all() or not self.held_out.any():
            raise UserError(f"{folder} has too few recordings to train on and to hold some out.")

    def waveforms(self, indices: Tensor) -> Tensor:
        """The clips themselves, decoded again: float32 (B, samples) in [-1, 1]."""
        rows = zip(
            *(self.table[key][indices].tolist() for key in ("file", "start", "gain")), strict=True
        )
        return torch.stack([self._clip(*row) for row in rows])

    def _clip(self, file: int, start: int, gain: float) -> Tensor:
        sound = decode_file(self.paths[file], self.mel.sample_rate, self.limits)
        part = sound[start : start + self.samples]
        return functional.pad(part * gain, (0, self.samples - len(part)))

    def _identity(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            **identity(self.folder, self.paths),
            "mel": asdict(self.mel),
            "samples": self.samples,
            "normalise": self.normalise,
            "limits": asdict(self.limits),
        }

    def _prepare_all(self) -> Table:
        skipped, parts, files, starts, gains = [], [], [], [], []
        attempts = in_threads(self._prepare, self.paths)
        results = track(attempts, "decoding recordings", total=len(self.paths), transient=True)
        for i, result in enumerate(results):
            if isinstance(result, Skipped):
                skipped.append([str(self.paths[i].relative_to(self.folder)), *result])
                continue
            parts.append(result.log_mels)
            files += [i] * len(result.starts)
            starts += result.starts
            gains += [result.gain] * len(result.starts)
        if not parts:
            report(self.folder, skipped, len(self.paths), "recording")
            raise UserError(f"{self.folder} has no recording that can be used.")
        table = {
            "log_mels": torch.cat(parts),
            "file": torch.tensor(files, dtype=torch.int32),
            "start": torch.tensor(starts),
            "gain": torch.tensor(gains),
        }
        return table, {"skipped": skipped}

    def _prepare(self, path: File) -> Prepared | Skipped:
        rate = self.mel.sample_rate
        try:
            sound = decode_file(path, rate, self.limits)
        except Exception as error:  # codecs raise all kinds of errors on damaged files
            return Skipped(getattr(error, "strerror", None) or str(error), broken=True)
        if len(sound) < SHORTEST * rate:
            return Skipped(f"{len(sound) / rate:.2f} s are too short", broken=False)
        count = max(1, round(len(sound) / self.samples))
        padded = functional.pad(sound, (0, max(0, count * self.samples - len(sound))))
        clips = padded[: count * self.samples].view(count, -1)
        audible = torch.nonzero(clips.abs().amax(1) >= SILENCE)[:, 0]
        if not len(audible):
            return Skipped("it is silent", broken=False)
        gain = gain_to(self.normalise, sound, rate)
        starts = (audible * self.samples).tolist()
        return Prepared(starts, log_mel(clips[audible] * gain, self.mel).half(), gain)


def decode_file(path: File, sample_rate: int, limits: Limits | None = None) -> Tensor:
    """A file's first audio stream as float32 (samples,) at ``sample_rate``, the channels' mean.

    What comes before the end of a truncated file is kept. Raises whatever the codec raises when
    there is nothing to decode, ValueError when there is no sound in it or it exceeds a limit.
    """
    limits, parts, samples = limits or Limits(), [], 0
    with container(path, limits) as opened:
        if not opened.streams.audio:
            raise ValueError("it has no audio stream")
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=sample_rate)
        try:
            for frame in frames(opened, "audio", limits):
                for part in resampler.resample(_mono(frame)):
                    parts.append(part.to_ndarray()[0])
                    samples += part.samples
                limits.check(bytes=4 * samples)
        except av.FFmpegError as error:
            if not parts:
                raise
            log.warning("%s is used up to where it breaks off: %s", path, error.strerror)
        if parts:
            parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
    if not parts:
        raise ValueError("it has no sound in it")
    sound = torch.from_numpy(np.concatenate(parts))
    if not sound.isfinite().all():
        raise ValueError("it has samples that are no numbers")
    return sound


def gain_to(normalise: str, sound: Tensor, sample_rate: int) -> float:
    """The factor that brings a sound (samples,) to a loudness of -20 LUFS or a peak of 0.95.

    Loudness is that of ITU-R BS.1770; none of the three lets a peak exceed 1.
    """
    highest = PEAK / sound.abs().amax().item()
    if normalise == "peak":
        return highest
    if normalise == "none":
        return min(1.0, highest / PEAK)
    block = int(0.4 * sample_rate) + 1  # the measure needs one block of 0.4 s
    padded = functional.pad(sound, (0, max(0, block - len(sound))))
    loudness = torchaudio.functional.loudness(padded[None], sample_rate).item()
    wanted = 10 ** ((LOUDNESS - loudness) / 20) if loudness > -70 else highest
    return min(wanted, highest)


def speech_commands(root: str | None) -> tuple[Path, Classes, set[File]]:
    """Speech Commands' folder, its words' files, and which are in its own testing_list.txt.

    Looked for in ``root``, else downloaded by torchaudio into the user's cache (2.4 GB). Raises
    UserError when that fails.
    """
    home = Path(root).expanduser() if root else CACHE
    places = (home, home / "SpeechCommands" / "speech_commands_v0.02")
    folder = next((place for place in places if (place / "testing_list.txt").is_file()), None)
    if folder is None:
        try:
            home.mkdir(parents=True, exist_ok=True)
            torchaudio.datasets.SPEECHCOMMANDS(home, download=True)
        except (OSError, RuntimeError, tarfile.TarError) as error:
            reason = first_line(error).rstrip(".:")
            raise UserError(
                f"Speech Commands could not be downloaded ({reason}); unpack it yourself and name "
                "its folder with data.root=."
            ) from error
        folder = places[1]
    # The words' folders; what begins with an underscore is noise.
    classes, _ = classified(folder, {".wav"}, "recording", r"^([^_/][^/]*)/")
    listed = (folder / "testing_list.txt").read_text(errors="replace").split()
    return folder, classes, {folder / name for name in listed}


def _mono(frame: av.AudioFrame) -> av.AudioFrame:
    """The channels' mean: the resampler's own mixing knows few layouts and crashes on others."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        values = values.astype(np.float32) / 128 - 1
    elif values.dtype.kind == "i":
        values = values.astype(np.float32) / -np.iinfo(values.dtype).min
    mean = values.mean(0, dtype=np.float32)
    mono = av.AudioFrame.from_ndarray(mean[None], format="fltp", layout="mono")
    mono.sample_rate = frame.sample_rate
    return mono
