"""Single notes of a General MIDI soundfont, labelled by instrument family and pitch."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from modalities.audio.mel import MelSettings, log_mel
from modalities.audio.packages import packaged
from modalities.audio.settings import AudioData
from scm_core.base.errors import UserError
from scm_core.contract.fields import Label
from scm_core.data.cache import CACHE, Table, cached

# General MIDI's 16 families of eight presets each, a word each.
FAMILIES = (
    "piano",
    "chromatic",
    "organ",
    "guitar",
    "bass",
    "strings",
    "ensemble",
    "brass",
    "reed",
    "pipe",
    "lead",
    "pad",
    "effects",
    "ethnic",
    "percussive",
    "sounds",
)
VERSION = 1  # of the rendering: another one makes other notes
HELD = 0.75  # of a clip: how long the key is down
FADE = 512  # samples at a clip's end, over which a note that still sounds fades out
FLUSH = 4096  # samples after which a stopped voice has left nothing to the next note
LOUDEST = 0.7  # peak of a preset's louder notes, for presets differ by up to 40 dB
PEAK = 0.95  # of any note
QUIET = 0.01  # a note whose peak stays below is dropped
HELD_OUT = 0.1
PATIENCE = 300  # seconds for playing all notes of a font once


class SoundFont:
    """A soundfont's melodic presets, rendered note by note; drums (bank 128) are left out.

    Raises UserError when the renderer is not installed or the file is no soundfont.
    """

    def __init__(self, path: Path, sample_rate: int, samples: int) -> None:
        """Read the file; its notes are ``samples`` long at ``sample_rate``."""
        try:
            import tinysoundfont
        except ImportError as error:
            raise UserError(
                "Notes are rendered by tinysoundfont: pip install --no-deps tinysoundfont."
            ) from error
        self.synth = tinysoundfont.Synth(samplerate=sample_rate)
        try:
            command = [sys.executable, "-P", Path(__file__).with_name("trial.py"), path]
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
            self.id = self.synth.sfload(str(path))
        except Exception as error:  # whatever the reader makes of the file
            raise UserError(f"data.font={path} is not a soundfont that can be read.") from error
        found = (p for p in range(128) if self.synth.sfpreset_name(self.id, 0, p))
        self.programs = tuple(found)
        if not self.programs:
            raise UserError(f"data.font={path} has no melodic preset (bank 0).")
        self.samples = samples
        # One buffer for all notes: the renderer never lets go of one that it has seen.
        self.buffer = memoryview(bytearray(8 * max(samples, FLUSH)))
        self.stereo = torch.frombuffer(self.buffer, dtype=torch.float32).view(-1, 2)
        self.fade = torch.ones(samples)
        length = min(FADE, samples)
        self.fade[-length:] = 0.5 + 0.5 * torch.cos(torch.linspace(0, math.pi, length))

    def note(self, program: int, pitch: int, velocity: int) -> Tensor:
        """One note, float32 (samples,), both channels' mean, at the font's own level."""
        self.synth.program_select(0, self.id, 0, program)
        self.synth.noteon(0, pitch, velocity)
        held = round(HELD * self.samples)
        sounding = self._render(held)
        self.synth.noteoff(0, pitch)
        released = self._render(self.samples - held)
        self.synth.sounds_off(0)
        self._render(FLUSH)
        return torch.cat([sounding, released]) * self.fade

    def _render(self, samples: int) -> Tensor:
        self.synth.generate_simple(samples, self.buffer[: 8 * samples])
        return self.stereo[:samples].mean(1)


class Notes:
    """Every preset at every pitch and a few velocities, with log-mels kept in the cache.

    Held out are 10 % of the (preset, pitch) pairs, so that a held-out note was never heard at any
    velocity, while every family and every pitch is left to train on. Silent notes are dropped.
    """

    def __init__(self, config: AudioData, mel: MelSettings, cache: Path = CACHE / "notes") -> None:
        """Render what ``config`` (an AudioData) asks for, or read it from the cache."""
        low, high, velocities = config.pitch_low, config.pitch_high, config.velocities
        if not 0 <= low <= high <= 127:
            raise UserError(
                f"data.pitch_low={low} and data.pitch_high={high} must rise within 0 to 127."
            )
        if not 1 <= velocities <= 127:
            raise UserError(f"data.velocities={velocities} must be 1 to 127.")
        self.path = find_font(config.font)
        self.origin = font_origin(self.path, config.licence)
        self.mel, self.samples = mel, config.frames * mel.hop
        self.pitches = range(low, high + 1)
        self.velocities = [round(127 * (i + 1) / velocities) for i in range(velocities)]
        self.identity = {
            "version": VERSION,
            "font": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "mel": asdict(mel),
            "samples": self.samples,
            "pitches": [low, high],
            "velocities": self.velocities,
        }
        self.table, _ = cached(cache, self.identity, self._render_all)
        programs, pitches = self.table["program"].long(), self.table["pitch"].long()
        self.log_mels = self.table["log_mels"]
        self.labels = {"family": programs // 8, "pitch": pitches - low}
        self.schema = {
            "family": Label(len(FAMILIES), FAMILIES),
            "pitch": Label(len(self.pitches), first=low),
        }
        pairs = list(zip(programs.tolist(), pitches.tolist(), strict=True))
        chosen = held_out_pairs(set(pairs))
        self.held_out = torch.tensor([pair in chosen for pair in pairs])
        self._font: SoundFont | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: a font cannot be copied, and is opened again where it is needed."""
        return {**self.__dict__, "_font": None}

    def waveforms(self, indices: Tensor) -> Tensor:
        """The notes themselves, rendered again: float32 (B, samples) in [-1, 1]."""
        if self._font is None:
            self._font = SoundFont(self.path, self.mel.sample_rate, self.samples)
        rows = zip(
            *(self.table[key][indices].tolist() for key in ("program", "pitch", "velocity")),
            strict=True,
        )
        notes = torch.stack([self._font.note(*row) for row in rows])
        return notes * self.table["gain"][indices, None]

    def _render_all(self) -> Table:
        font = SoundFont(self.path, self.mel.sample_rate, self.samples)
        keys = [(pitch, velocity) for pitch in self.pitches for velocity in self.velocities]
        shape = (self.mel.mels, self.samples // self.mel.hop)
        # Filled in place: thousands of tensors that live on would leave the memory in shreds.
        log_mels = torch.empty(len(font.programs) * len(keys), *shape, dtype=torch.float16)
        numbers, gains, count = [], [], 0
        for program in track(font.programs, "rendering notes", transient=True):
            notes = torch.stack([font.note(program, *key) for key in keys])
            peaks = notes.abs().amax(1)
            common = LOUDEST / peaks.quantile(0.9).clamp(min=1e-6)
            gain = torch.minimum(common, PEAK / peaks.clamp(min=1e-6))
            kept = torch.nonzero(gain * peaks > QUIET)[:, 0]
            if not len(kept):
                continue
            for part in kept.split(8):
                sounds = notes[part] * gain[part, None]
                log_mels[count : count + len(part)] = log_mel(sounds, self.mel)
                count += len(part)
            numbers += [(program, *keys[i]) for i in kept]
            gains.append(gain[kept])
        if not count:
            raise UserError(f"data.font={self.path} is silent in this range of pitches.")
        program, pitch, velocity = torch.tensor(numbers, dtype=torch.uint8).T.contiguous()
        named = {"program": program, "pitch": pitch, "velocity": velocity}
        tensors = {"log_mels": log_mels[:count], "gain": torch.cat(gains), **named}
        return {key: value.clone() for key, value in tensors.items()}, {}


def find_font(path: str | None) -> Path:
    """The soundfont at ``path``, else TimGM6mb, which the package pretty_midi contains."""
    if path:
        found = Path(path)
        if not found.is_file():
            raise UserError(
                f"data.font={path} is not a file: name an .sf2 or .sf3 file, to evaluate a model "
                "the one that it was trained on."
            )
        return found
    font = packaged("pretty_midi", "TimGM6mb.sf2")
    if font is None:
        raise UserError(
            "The default soundfont is in the package pretty_midi: pip install pretty_midi, or name "
            "an .sf2 or .sf3 file with data.font=."
        )
    return font


def font_origin(path: Path, licence: str | None) -> dict[str, str]:
    """The name and licence of a soundfont: ``licence`` where given, else what the file states."""
    stated = _font_information(path)
    name = stated.get("INAM") or path.name
    known = {"TimGM6mb": "GPL-2.0"}.get(name)
    return {"source": name, "licence": licence or known or stated.get("ICOP") or "not stated"}


def held_out_pairs(pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """A tenth of the (preset, pitch) pairs by their hash, the same ones each time.

    The last pair of a family or of a pitch stays. Raises UserError when none can be held out.
    """
    left = Counter(program // 8 for program, _ in pairs)
    left_pitch = Counter(pitch for _, pitch in pairs)
    held: set[tuple[int, int]] = set()
    wanted = max(1, round(HELD_OUT * len(pairs)))
    ranked = sorted(pairs, key=lambda pair: hashlib.sha256(f"{pair}".encode()).digest())
    for program, pitch in ranked:
        if len(held) < wanted and left[program // 8] > 1 and left_pitch[pitch] > 1:
            held.add((program, pitch))
            left[program // 8] -= 1
            left_pitch[pitch] -= 1
    if not held:
        raise UserError("The soundfont has too few notes in this pitch range to hold some out.")
    return held


def _font_information(path: Path) -> dict[str, str]:
    """The texts of a soundfont's INFO list by their four-letter names; none if it has no such."""
    with open(path, "rb") as file:
        head = file.read(20)
        if head[:4] != b"RIFF" or head[8:16] != b"sfbkLIST":
            return {}
        content = file.read(int.from_bytes(head[16:20], "little"))
    texts, start = {}, 4  # after the word INFO
    while start + 8 <= len(content):
        name = content[start : start + 4].decode("latin-1")
        size = int.from_bytes(content[start + 4 : start + 8], "little")
        start += 8
        text = content[start : start + size].split(b"\0")[0]
        texts[name] = text.decode("utf-8", "replace").strip()
        start += size + size % 2
    return texts
