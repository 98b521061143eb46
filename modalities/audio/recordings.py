"""Any folder of recordings: class = subfolder or name pattern, unusable files named and skipped."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torchaudio
from torch import Tensor
from torch.nn import functional

from modalities.audio.clips import SILENCE
from modalities.audio.mel import MelSettings, log_mel
from modalities.audio.settings import AudioData
from modalities.common.captions import conditioned, stated
from modalities.common.downloads import downloading
from modalities.common.text import TextEncoder
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.data.cache import CACHE
from scm_core.data.captions import captioned
from scm_core.data.folders import Classes, Skipped, again, classified, identity
from scm_core.data.limits import container, frames
from scm_core.data.prepared import Joined, Rows, contents, prepare
from scm_core.data.remote import local
from scm_core.data.shards import File

log = logging.getLogger(__name__)

SUFFIXES = {
    *(".wav", ".wave", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp2", ".mp3", ".m4a", ".m4b"),
    *(".aac", ".aif", ".aifc", ".aiff", ".au", ".g722", ".mka", ".webm", ".wma"),
}
NORMALISATIONS = ("loudness", "peak", "none")
VERSION = 1  # of the preparation: another one makes other clips
LOUDNESS = -20.0  # LUFS
PEAK = 0.95
SHORTEST = 0.1  # seconds
ADVICE = "unpack it yourself and name its folder with data.root=."
UNPACKED = ".unpacked"  # where Speech Commands lies before all of it is there


class Recordings:
    """The recordings of a folder as clips of one length, with log-mels kept in the cache.

    A file longer than a clip gives several, one after the other, the last one if it is at least
    half full; what is shorter is padded with silence at its end. With an ``encoder`` clips have
    their file's caption instead of a class. Files that are silent, too short or broken are named in
    a warning and skipped; more than 1 % broken ones stop with their list.
    """

    def __init__(
        self,
        config: AudioData,
        mel: MelSettings,
        cache: Path = CACHE / "recordings",
        limits: Limits | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        """Decode what ``config`` (an AudioData) names, or read its log-mels from the cache."""
        if config.normalise not in NORMALISATIONS:
            raise UserError(
                f"data.normalise={config.normalise} is none of {', '.join(NORMALISATIONS)}."
            )
        captions = None
        if encoder and config.root:
            folder = local(config.root)
            classes, held, captions = captioned(folder, SUFFIXES, "recording")
        elif config.name == "speech_commands":
            folder, classes, held = speech_commands(config.root)
        elif config.root:
            folder = local(config.root)
            classes, held = classified(folder, SUFFIXES, "recording", config.pattern)
        else:
            raise UserError("data.name=folder needs the folder of recordings: data.root=.")
        self.mel, self.normalise = mel, config.normalise
        self.limits = limits or Limits()
        self.samples = config.frames * mel.hop
        self.origin = {"source": folder.resolve().name, "licence": config.licence or "not stated"}
        self.paths = [path for files in classes.values() for path in files]
        tables = prepare(folder, self.paths, self._prepare, self._settings(), cache, "recording")
        self.file, self.start, self.gain = (
            torch.cat([rows[name] for rows in tables]) for name in ("file", "start", "gain")
        )
        used = [self.paths[i] for i in self.file.tolist()]
        of_files = folder, classes, held
        self.schema, self.labels, self.held_out = conditioned(
            *of_files, captions, used, "recording", encoder
        )
        self.log_mels = Joined([rows["log_mels"] for rows in tables])
        files = identity(folder, contents(self.paths, tables), classes, held)
        self.identity = {"files": files, "samples": self.samples, "normalise": self.normalise}
        self.identity |= stated(self.labels, encoder)

    def waveforms(self, indices: Tensor) -> Tensor:
        """The clips themselves, decoded again: float32 (B, samples) in [-1, 1].

        UserError where a file is gone.
        """
        found = torch.zeros(len(indices), self.samples)
        files = self.file[indices]
        for file in files.unique().tolist():  # each once, for it may be hours long
            sound = again(self._sound, self.paths[file])
            for place in torch.nonzero(files == file)[:, 0].tolist():
                start, gain = (part[indices[place]].item() for part in (self.start, self.gain))
                part = sound[start : start + self.samples]
                found[place, : len(part)] = part * gain
        return found

    def _sound(self, path: File) -> Tensor:
        return decode_file(path, self.mel.sample_rate, self.limits)

    def _settings(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "mel": asdict(self.mel),
            "samples": self.samples,
            "normalise": self.normalise,
            "limits": asdict(self.limits),
        }

    def _prepare(self, path: File) -> Rows | Skipped:
        """A file's clips: where each starts, its log-mels float16, the file's gain."""
        rate, sound = self.mel.sample_rate, self._sound(path)
        if len(sound) < SHORTEST * rate:
            return Skipped(f"{len(sound) / rate:.2f} s are too short", broken=False)
        count = max(1, (2 * len(sound) + self.samples) // (2 * self.samples))
        padded = functional.pad(sound, (0, max(0, count * self.samples - len(sound))))
        clips = padded[: count * self.samples].view(count, -1)
        audible = torch.nonzero(clips.abs().amax(1) >= SILENCE)[:, 0]
        if not len(audible):
            return Skipped("it is silent", broken=False)
        gain = gain_to(self.normalise, sound, rate)
        return {
            "log_mels": log_mel(clips[audible] * gain, self.mel).half(),
            "start": audible * self.samples,
            "gain": torch.full((len(audible),), gain),
        }


def decode_file(path: File, sample_rate: int, limits: Limits | None = None) -> Tensor:
    """A file's first audio stream as float32 (samples,) at ``sample_rate``, the channels' mean.

    What comes before the end of a truncated file is kept. Raises whatever the codec raises when
    there is nothing to decode, ValueError when there is no sound in it or it exceeds a limit.
    """
    limits, parts, samples = limits or Limits(), [], 0
    with container(path, limits) as opened:
        if not opened.streams.audio:
            raise ValueError("it has no audio stream")
        try:
            for part in _resampled(frames(opened, "audio", limits), sample_rate):
                parts.append(part)
                samples += len(part)
                limits.check(bytes=4 * samples)
        except av.FFmpegError as error:
            if not parts:
                raise
            log.warning("%s is used up to where it breaks off: %s", path, error.strerror)
    if not parts:
        raise ValueError("it has no sound in it")
    sound = torch.from_numpy(np.concatenate(parts))
    if not sound.isfinite().all():
        raise ValueError("it has samples that are NaN or Inf")
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
    home = Path(root) if root else CACHE
    places = (home, home / "SpeechCommands" / "speech_commands_v0.02")
    folder = next((place for place in places if (place / "testing_list.txt").is_file()), None)
    if folder is None:
        folder = places[1]
        with downloading("Speech Commands", ADVICE):
            _download(home, folder)
    # The words' folders; what begins with an underscore is noise.
    classes, _ = classified(folder, {".wav"}, "recording", r"^([^_/][^/]*)/")
    listed = (folder / "testing_list.txt").read_text(errors="replace").split()
    return folder, classes, {folder / name for name in listed}


def _download(home: Path, folder: Path) -> None:
    """Have torchaudio download and unpack Speech Commands: the whole folder, or none of it."""
    if folder.is_dir():  # by now, of another process
        return
    home.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(home / UNPACKED, ignore_errors=True)
    torchaudio.datasets.SPEECHCOMMANDS(home, folder_in_archive=UNPACKED, download=True)
    folder.parent.mkdir(exist_ok=True)
    (home / UNPACKED / folder.name).rename(folder)


def _resampled(decoded: Iterator[av.AudioFrame], sample_rate: int) -> Iterator[np.ndarray]:
    """Frames as float32 (samples,) at ``sample_rate``; their own rate may change on the way."""
    for _, run in groupby(decoded, lambda frame: frame.sample_rate):
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=sample_rate)
        for frame in chain(map(_mono, run), [None]):
            for part in resampler.resample(frame):
                yield part.to_ndarray()[0]


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
