"""UCF101 as torchvision lays it out: UCF-101/CLASS/*.avi, and which of them are for testing."""

from __future__ import annotations

from pathlib import Path

from modalities.video.folder import Splits, read_files
from modalities.video.settings import VideoData
from scm_core.base.errors import UserError
from scm_core.contract.config import Limits
from scm_core.data.folders import Classes

FILES, LISTS = "UCF-101", "ucfTrainTestlist"
FOLD = "01"  # the first of its three splits, which most papers report


def read_ucf101(config: VideoData, cache: Path, limits: Limits) -> Splits:
    """Clips of the first training list, of the first test list, and all that they depend on.

    Raises UserError when ``config.root`` lacks the videos, the lists, or a file of theirs.
    """
    if not config.root:
        raise UserError(f"data.name=ucf101 needs the folder of {FILES} and {LISTS}: data.root=.")
    root = Path(config.root)
    train, test = (_listed(root, part) for part in ("train", "test"))
    classes: Classes = {}
    for path in sorted({*train, *test}):
        classes.setdefault(path.parent.name, []).append(path)
    return read_files(root / FILES, classes, set(test), config, cache, limits)


def _listed(root: Path, part: str) -> list[Path]:
    """The files of ``trainlist01.txt`` (lines ``CLASS/FILE.avi NUMBER``) or ``testlist01.txt``."""
    path = root / LISTS / f"{part}list{FOLD}.txt"
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"no list of UCF101 at {path}: {error.strerror}") from error
    names = [Path(line.split()[0]) for line in lines if line.strip()]
    if outside := [n for n in names if len(n.parts) != 2 or {"..", n.root} & {*n.parts}]:
        raise UserError(f"{path} lists {outside[0]}, which is no CLASS/FILE.")
    files = [root / FILES / name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{path} lists {missing[0]}, which is not there.")
    return files
