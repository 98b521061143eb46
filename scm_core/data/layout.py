"""What folders of a data set mean that are no classes: training and held-out files, and litter."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from scm_core.base.console import console
from scm_core.base.errors import UserError

log = logging.getLogger(__name__)

LITTER = {  # what systems leave in any folder, beside what is hidden; in lower case
    *("$recycle.bin", "system volume information", "lost+found", "@eadir", "#recycle", "@recycle"),
    *("#snapshot", "__macosx", "thumbs.db", "desktop.ini"),
}
# What lies beside media and says something of them.
TEXTS = {"", ".txt", ".md", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".html", ".pdf"}
SYSTEM = ("/proc", "/sys")  # no disks, and full of links to everywhere
PARTS = re.compile(
    r"((?P<train>train(ing)?)|(?P<val>val|valid|validation|dev)|(?P<test>test(ing)?))"
    r"([ _-]?(set|data|split|\d+))?",
    re.IGNORECASE,
)


class Layout(NamedTuple):
    """Where files belong, and the names of the folders that are trained on, held out, left out.

    ``paths`` are those of all files that are used, without their split's folder, those that are
    held out at the end, from ``root``, a folder within the data's. ``decided`` says of each whether
    it is held out, where a split does. Classes are folders in ``homes``. ``untrained`` are `val`
    and `test` where they lie side by side without any training folder.
    """

    paths: dict[Any, PurePath]
    decided: dict[Any, bool]
    root: PurePath
    homes: set[PurePath]
    trained: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()


def ignored(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or what a system keeps for itself."""
    return name.startswith(".") or name.lower() in LITTER


def walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files in a folder and its subfolders; links are followed, but not back to ``above``.

    What is hidden or a system's own is left out. UserError for a folder that cannot be read, or
    holds the system's processes (/proc), which have no end.
    """
    real = folder.resolve()
    if real in above:
        return
    try:
        if real.stat().st_dev in {os.stat(path).st_dev for path in SYSTEM if os.path.ismount(path)}:
            raise UserError(f"{folder} holds the system's own and no files to learn from.")
        children = sorted(child for child in folder.iterdir() if not ignored(child.name))
        kinds = [(child, child.is_dir()) for child in children]
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}.") from error
    for child, is_folder in kinds:
        if is_folder:
            yield from walk(child, (*above, real))
        elif child.is_file():
            yield child


def part(name: str) -> str | None:
    """The part of a data set that a folder of this name holds: `train`, `val`, `test` or None."""
    match = PARTS.fullmatch(name)
    return match and next(key for key, found in match.groupdict().items() if found)


def layout(tree: Mapping[Any, PurePath]) -> Layout:
    """The layout of files, given the path of each.

    A split is a folder of training files beside one of held-out ones, whatever lies above or below
    them. Where both `test` and `val` are there, `test` is held out; what else lies beside them is
    left out, for it is no class of theirs. Without such a sibling the name is a class's like any
    other, but for a training folder that holds all there is.
    """
    splits = _splits(tree.values())
    doubled = _doubled(tree.values(), splits)
    paths, decided, homes, named = {}, {}, set(), defaultdict(set)
    for file, path in tree.items():
        above = next((folder for folder in path.parents if folder in splits), None)
        if above is None:
            paths[file] = path
            continue
        first, *rest = path.relative_to(above).parts
        kind = part(first) if rest else None
        role = {"train": "trained", splits[above]: "held"}.get(kind, "left")
        named[role].add(first if rest else "files beside them")
        home = above / first
        if home in doubled:
            home, rest = home / rest[0], rest[1:]
        if role != "left":
            paths[file] = above.joinpath(*rest)
            decided[file] = role == "held"
            homes.add(home)
    root = next(iter(splits)) if len(splits) == 1 else PurePath()
    if len(splits) != 1 or not all(path.is_relative_to(root) for path in paths.values()):
        root, homes = PurePath(), {PurePath()}
    ordered = sorted(paths, key=lambda file: (decided.get(file, False), paths[file], tree[file]))
    tops = {path.parts[0]: part(path.parts[0]) for path in tree.values()}
    untrained = {"val", "test"} <= set(tops.values()) and "train" not in tops.values()
    return Layout(
        {file: paths[file].relative_to(root) for file in ordered},
        decided if named["held"] else {},
        root,
        homes,
        **{role: tuple(sorted(names)) for role, names in named.items()},
        untrained=tuple(name for name in sorted(tops) if untrained and tops[name]),
    )


def _doubled(paths: Collection[PurePath], splits: Collection[PurePath]) -> set[PurePath]:
    """The folders of splits that hold one folder of such a name and nothing else, as some archives
    unpack: that is no class."""
    below = defaultdict(set)
    for path in paths:
        for above in filter(splits.__contains__, path.parents):
            first, *rest = path.relative_to(above).parts
            below[above / first].add(rest[0] if len(rest) > 1 else "")
    only = {home: names.pop() for home, names in below.items() if len(names) == 1}
    return {home for home, name in only.items() if part(name) and part(name) == part(home.name)}


def empty_parts(folder: Path, paths: Collection[PurePath]) -> Iterator[str]:
    """The folder itself, as "", where it holds none of the paths, or those splits in it."""
    there = {path.parts[0] for path in paths}
    if not there:
        yield ""
    for child in sorted(folder.iterdir()):
        if part(child.name) and child.name not in there and child.is_dir():
            yield child.name


def tell(folder: Path, found: Layout) -> None:
    """Say in one line which folders are the split, where there is one."""
    if found.held:
        roles = {"trained on": found.trained, "held out": found.held, "left out": found.left}
        said = "; ".join(f"{role}: {', '.join(names)}" for role, names in roles.items() if names)
        console.print(f"{folder / found.root}: {said}", soft_wrap=True)


def tell_left_out(
    folder: Path,
    homes: Collection[PurePath],
    others: Collection[PurePath],
    classes: set[str],
    known: str,
) -> None:
    """Name what would be a class if it held files that are ``known``, and count others in classes.

    ``others`` are the paths of all files that are not, ``homes`` the folders of class folders.
    """
    endings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for home in filter(Path.is_dir, (folder / home for home in homes)):
        for child in sorted(home.iterdir()):
            if child.is_dir() and not ignored(child.name) and child.name not in classes:
                endings[child.name].update()
    for path in others:
        home = next((home for home in path.parents if home in homes), None)
        if home is not None and len(path.relative_to(home).parts) > 1:
            endings[path.relative_to(home).parts[0]][path.suffix.lower() or "no ending"] += 1
    for name in sorted(endings.keys() - classes):
        found = _listed(endings[name])
        log.warning("%s is no class: it has no %s; %s", name, known, found or "it is empty")
    if stray := sum((endings[name] for name in endings.keys() & classes), Counter()):
        log.warning("left out in classes, as no %s: %s", known, _listed(stray))


def tell_others(others: Iterable[PurePath], known: str) -> None:
    """Count the files of other endings where there are no class folders; texts are about files."""
    endings = Counter(path.suffix.lower() for path in others)
    media = Counter({ending: n for ending, n in endings.items() if ending not in TEXTS})
    if media:
        log.warning("left out, as no %s: %s", known, _listed(media))


def _listed(endings: Counter[str]) -> str:
    """The endings that most files have, and how many have each."""
    said = [f"{count} of {ending}" for ending, count in endings.most_common(5)]
    return ", ".join(said + ["others"] * (len(endings) > 5))


def _splits(paths: Collection[PurePath]) -> dict[PurePath, str | None]:
    """The outermost folders that hold a split, and which of its parts is held out, if any."""
    parts = defaultdict(set)
    for folder in {folder for path in paths for folder in path.parents}:
        if kind := part(folder.name):
            parts[folder.parent].add(kind)
    found = {
        home: "test" if "test" in kinds else "val"
        for home, kinds in parts.items()
        if "train" in kinds and len(kinds) > 1
    }
    if not found and {part(path.parts[0]) for path in paths} == {"train"}:
        return {PurePath(): None}
    return {home: kind for home, kind in found.items() if not set(home.parents) & set(found)}
