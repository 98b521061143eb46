"""Pack a folder of media into shards."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from omegaconf import OmegaConf
from rich.progress import track

from scm_core.base import console
from scm_core.base.arguments import parse, place
from scm_core.base.errors import UserError
from scm_core.base.files import replacing
from scm_core.data import shards
from scm_core.data.layout import ignored, walk
from scm_core.engine import config


@dataclass
class PackConfig:
    """What to pack, and where to put it."""

    root: str | None = place()
    out: str | None = place()
    megabytes: int = 1000


def main(arguments: list[str]) -> None:
    """Write the shards that are not there yet."""
    known = OmegaConf.structured(PackConfig)
    settings = config.merge(known, ("command line", parse(arguments)))
    if not settings.root or not settings.out:
        raise UserError("pack which folder into which? give root=FOLDER out=FOLDER")
    if settings.megabytes < 1:
        raise UserError(f"megabytes={settings.megabytes} must be at least 1")
    root, out = Path(settings.root), Path(settings.out)
    if not root.is_dir():
        raise UserError(f"root={root} is not a folder")
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"out={out} lies in root={root}; shards go elsewhere")
    parts = list(shared_out(root, settings.megabytes * 1_000_000))
    if not parts:
        raise UserError(f"root={root} has no files")
    names = [out / f"{i:05d}-of-{len(parts):05d}.tar" for i in range(len(parts))]
    there = {path for path in out.glob("*.tar") if not ignored(path.name)}  # no killed one's part
    if strange := sorted(there - set(names)):
        raise UserError(f"out={out} has other shards ({strange[0].name}); choose another folder")
    for path, files in zip(track(names, "packing", transient=True), parts, strict=True):
        if not (path.exists() and holds(path, root, files)):
            write(path, root, files)
    total = sum(path.stat().st_size for path in names)
    console.console.print(
        f"{out}: {sum(map(len, parts))} files in {len(parts)} shards, {total / 1e6:.1f} MB; "
        f"train on them with data.name=folder data.root={out}",
        soft_wrap=True,
    )


def shared_out(root: Path, size: int) -> Iterator[list[Path]]:
    """The files of each shard, at most ``size`` bytes of them, in an order as good as random.

    The order is that of a hash of their names, so a reader that goes through a shard from its
    beginning meets the classes mixed.
    """

    def mixed(path: Path) -> bytes:
        return hashlib.sha256(str(path.relative_to(root)).encode(errors="replace")).digest()

    part, filled = [], 0
    for path in sorted(walk(root), key=mixed):
        length = path.stat().st_size
        if part and filled + length > size:
            yield part
            part, filled = [], 0
        part.append(path)
        filled += length
    if part:
        yield part


def holds(shard: Path, root: Path, files: Sequence[Path]) -> bool:
    """Whether a shard is whole and holds these files, by their names, sizes and dates."""
    try:
        found = [(m.relative_to(shard.parent), m.size, m.modified) for m in shards.read(shard)]
    except UserError:
        return False
    stats = [(path.relative_to(root), path.stat()) for path in files]
    return found == [(name, stat.st_size, int(stat.st_mtime)) for name, stat in stats]


def write(shard: Path, root: Path, files: Sequence[Path]) -> None:
    """Write one shard, atomically. UserError when the disk refuses, or a file is gone."""
    with replacing(shard) as part, tarfile.open(part, "w", dereference=True) as tar:
        for path in files:
            with _opened(path) as file:
                info = tar.gettarinfo(arcname=path.relative_to(root).as_posix(), fileobj=file)
                # Nothing of who packed them, and whole seconds, which take no second header.
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mode, info.mtime = 0o644, int(info.mtime)
                tar.addfile(info, file)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
