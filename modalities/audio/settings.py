"""The audio modality's section `data`."""

from __future__ import annotations

from dataclasses import dataclass

from scm_core.base.arguments import place, prose


@dataclass
class AudioData:
    """Which sounds to train on, and how they are fed.

    ``name`` is ``notes``, ``folder`` or ``speech_commands``; a clip is ``frames`` hops long.
    ``font`` (an .sf2 or .sf3 file), ``pitch_low`` and ``pitch_high`` (MIDI numbers) and
    ``velocities`` (how many) are of notes; ``root``, ``pattern`` (a regular expression whose group
    is a file's class) and ``normalise`` (loudness, peak or none) of recordings. ``licence`` is
    what the checkpoint says of the sounds. With a ``text_encoder`` they are recordings of ``root``
    with captions.
    """

    name: str = "notes"
    root: str | None = place()
    batch_size: int = 128
    workers: int = 0
    frames: int = 64
    font: str | None = place()
    pitch_low: int = 48
    pitch_high: int = 84
    velocities: int = 3
    pattern: str | None = prose()
    normalise: str = "loudness"
    licence: str | None = prose()
    text_encoder: str | None = place()
