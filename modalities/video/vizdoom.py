"""Record game play: `python -m modalities.video.vizdoom out=FOLDER`, needs `pip install vizdoom`.

Clips of VizDoom's maze my_way_home (Freedoom's pictures), in each of which one action is held, as
lossless MP4 in out/train/ACTION and out/test/ACTION. Train with preset=vizdoom data.root=FOLDER.

Keys (key=value):
  out=FOLDER         where the clips go; clips that lie there already are kept
  clips=3000         of training; a tenth as many are held out, from other episodes
  frames=16          of a clip, four tics of the game each (8.75 a second)
  size=64            pixels a side
  seed=0             the same seed records the same clips
"""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.progress import track
from torch import Tensor
from torchvision.transforms.v2 import functional

from scm_core.base import console
from scm_core.base.arguments import parse, place
from scm_core.base.errors import UserError
from scm_core.base.files import write_text
from scm_core.base.merging import merge
from scm_core.data.media import write_video

ACTIONS = {
    "forward": "MOVE_FORWARD",
    "backward": "MOVE_BACKWARD",
    "turn-left": "TURN_LEFT",
    "turn-right": "TURN_RIGHT",
    "step-left": "MOVE_LEFT",
    "step-right": "MOVE_RIGHT",
}
TICS = 4  # of the game, 35 a second, in a frame
WARM_UP = (10, 60)  # tics of random play before a clip begins
HELD_OUT = 0.1
SEEDS = 1 << 32  # of the game


@dataclass
class RecordConfig:
    """What to record, and where to."""

    out: str | None = place()
    clips: int = 3000
    frames: int = 16
    size: int = 64
    seed: int = 0


def main(arguments: list[str]) -> None:
    """Record the clips that are not yet there."""
    known = OmegaConf.structured(RecordConfig)
    settings = merge(known, ("command line", parse(arguments)))
    if not settings.out:
        raise UserError("record into which folder? give out=FOLDER")
    if min(settings.clips, settings.frames, settings.size) < 1 or settings.size % 2:
        raise UserError("clips, frames and size must be at least 1, and size even")
    _claim(settings)
    wanted = list(_missing(settings))
    with tempfile.TemporaryDirectory() as folder:
        game = _game(Path(folder), settings.seed)
        for path, action, seed in track(wanted, "recording", transient=True):
            clip = record(game, action, settings.frames, settings.size, seed)
            write_video(clip, path, 35 / TICS, lossless=True)
        game.close()
    console.console.print(f"{len(wanted)} clips recorded into {settings.out}")


def _claim(settings: Any) -> None:
    """Note what the clips of this folder are, or refuse one that holds others."""
    path = Path(settings.out) / "recording.json"
    what = json.dumps({key: settings[key] for key in ("frames", "size", "seed")})
    if path.exists() and path.read_text() != what:
        raise UserError(f"{settings.out} holds clips of {path.read_text()}: choose another out=")
    write_text(path, what)


def record(game: Any, action: str, frames: int, size: int, seed: int) -> Tensor:
    """One clip uint8 (3, frames, size, size) of an episode of its own, with ``action`` held.

    An episode that ends early, for the way home was found, is played again in another way.
    """
    play = random.Random(seed)
    game.set_seed(seed % SEEDS)
    pictures: list[Tensor] = []
    while len(pictures) < frames:
        pictures.clear()
        game.new_episode()
        for _ in range(play.randint(*WARM_UP)):
            steps = ("forward", "forward", "turn-left", "turn-right")
            game.make_action(_buttons(play.choice(steps)))
        while len(pictures) < frames and not game.is_episode_finished():
            screen = torch.from_numpy(game.get_state().screen_buffer.copy())
            square = functional.center_crop(screen, [min(screen.shape[-2:])] * 2)
            pictures.append(functional.resize(square, [size, size], antialias=True))
            game.make_action(_buttons(action), TICS)
    return torch.stack(pictures, 1)


def _missing(settings: Any) -> list[tuple[Path, str, int]]:
    """Where clips are to be written, their actions and the seeds of their episodes."""
    names, found = list(ACTIONS), []
    counts = {"train": settings.clips, "test": max(len(names), round(HELD_OUT * settings.clips))}
    for part, (split, count) in enumerate(counts.items()):
        for i in range(count):
            action = names[i % len(names)]
            path = Path(settings.out) / split / action / f"{i:06d}.mp4"
            if not path.exists():
                found.append((path, action, 2 * (settings.seed * 1_000_003 + i) + part))
    return found


def _buttons(action: str) -> list[bool]:
    return [name == action for name in ACTIONS]


def _game(folder: Path, seed: int) -> Any:
    """The maze, without a window and without an end; its files go into ``folder``."""
    try:
        import vizdoom
    except ImportError as error:
        raise UserError("Game play is recorded by vizdoom: pip install vizdoom.") from error
    game = vizdoom.DoomGame()
    game.load_config(str(Path(vizdoom.scenarios_path) / "my_way_home.cfg"))
    game.set_doom_config_path(str(folder / "_vizdoom.ini"))
    game.set_window_visible(False)
    game.set_episode_timeout(0)
    game.set_screen_format(vizdoom.ScreenFormat.CRCGCB)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_render_hud(False)
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in ACTIONS.values()])
    game.set_seed(seed % SEEDS)
    with contextlib.chdir(folder):  # where it leaves a folder of its own
        game.init()
    return game


if __name__ == "__main__":
    console.run(main, __doc__)
