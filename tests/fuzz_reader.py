"""Reads files as the plugins do, in a process of its own: a line `KIND PATH` in, a line out.

A native decoder that crashes takes this process with it and not the tests.
"""

import logging
import resource
import signal
import sys
import warnings
from pathlib import Path

import hostile
import torch

from modalities.audio.notes import SoundFont, font_origin
from modalities.common.fashion_mnist import _read_idx
from scm_core.base.errors import UserError
from scm_core.data import provenance, shards
from scm_core.engine import config, storage

PATIENCE = 60  # seconds of computing for one file


def font(path: Path) -> None:
    """All that `Notes` does with a soundfont, of its first and last presets."""
    font_origin(path, None)
    opened = SoundFont(path, 8000, 4096)
    for program in (opened.programs[0], opened.programs[-1]):
        assert opened.note(program, 60, 100).shape == (4096,)


SENTENCES = {  # what may raise nothing but a UserError
    "font": font,
    "idx": lambda path: _read_idx(path.parent, path.name),
    "model": storage.read,
    "shard": lambda path: [member.open().read() for member in shards.read(path)],
    "yaml": config.read_yaml,
}


def result(kind: str, path: Path) -> str:
    """`read` or `refused`; anything else is a defect."""
    if kind in SENTENCES:
        try:
            SENTENCES[kind](path)
        except UserError:
            return "refused"
        return "read"
    try:
        provenance.read(path)
    except UserError as error:
        assert "\n" not in str(error)
    try:
        tensor = hostile.read(kind, path)
    except Exception:  # which the reader of a folder takes for a broken file
        return "refused"
    assert tensor.ndim == {"picture": 3, "sound": 1, "video": 4}[kind] and tensor.numel()
    assert tensor.isfinite().all()
    return "read"


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)  # which kills this process when it is over
        kind, path = line.rstrip("\n").split(" ", 1)
        try:
            said = result(kind, Path(path))
        except BaseException as error:
            said = f"defect {type(error).__name__}: {error}".replace("\n", " ")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(peak, said, flush=True)


if __name__ == "__main__":
    main()
