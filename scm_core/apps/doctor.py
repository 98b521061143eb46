"""What this machine has and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from typing import NamedTuple

import torch
from packaging.requirements import Requirement
from rich import box
from rich.table import Table
from rich.text import Text

import scm_core
from scm_core.base import console, distributed
from scm_core.base.device import resolve_precision
from scm_core.base.errors import UserError
from scm_core.contract import spec as modalities
from scm_core.data.cache import CACHE
from scm_core.dual import flash
from scm_core.engine import config

PACKAGE = "scm-core"


class Finding(NamedTuple):
    """A thing, whether it is as it should be, and what there is or what to do."""

    thing: str
    ok: bool
    said: str


def main(arguments: list[str]) -> None:
    """Print all findings, a table for each kind."""
    if arguments:
        raise UserError("doctor takes no arguments")
    chapters = {"Versions": versions(), "Devices": devices(), "Extras": extras()}
    for entry in modalities.installed():
        chapters[f"Modality {entry.name}"] = plugin(entry.name)
    for title, findings in chapters.items():
        table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
        table.add_column()
        table.add_column()
        table.add_column(overflow="fold")
        for thing, ok, said in findings:
            table.add_row(thing, Text("ok", "green") if ok else Text("--", "yellow"), said)
        console.console.print(table)


def versions() -> Iterator[Finding]:
    """Python, this project, and what it always needs."""
    yield Finding("python", True, f"{platform.python_version()}, {platform.platform()}")
    yield Finding(PACKAGE, True, scm_core.__version__)
    for requirement in required(distribution(PACKAGE), extra=None):
        yield wanted(requirement)


def devices() -> Iterator[Finding]:
    """Processors, graphics cards, and room on the disk."""
    kind = torch.backends.cpu.get_cpu_capability()
    wish = " (OMP_NUM_THREADS)" * ("OMP_NUM_THREADS" in os.environ)
    threads = (
        f"{os.cpu_count()} cores, {distributed.cpus()} of them for this process,"
        f" {torch.get_num_threads()} threads{wish}"
    )
    fast = resolve_precision("auto", "cpu")
    yield Finding("CPU", True, f"{kind}, {threads}, trains in {fast}")
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        fast = resolve_precision("auto", "cuda")
        said = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, trains in {fast}"
        yield Finding(f"GPU {i}", True, said)
        why = flash.missing(i)
        said = f"in blocks, slower: {why}" if why else "in one pass, by a Triton kernel"
        yield Finding(f"GPU {i}, attention's tangent", not why, said)
    if not torch.cuda.is_available():
        yield Finding("GPU", False, "none that this torch can use: presets cpu, demo and smoke fit")
    for name, folder in (("here", os.getcwd()), (f"cache, {CACHE}", _existing(CACHE))):
        yield Finding(
            f"disk {name}", True, f"{shutil.disk_usage(folder).free / 2**30:.0f} GiB free"
        )


def extras() -> Iterator[Finding]:
    """What the extras of scm-core and of the plugins' packages want."""
    packages = {PACKAGE: distribution(PACKAGE)}
    packages |= {e.dist.name: e.dist for e in modalities.installed() if e.dist}
    for name, package in packages.items():
        for extra in package.metadata.get_all("Provides-Extra") or []:
            findings = [wanted(requirement) for requirement in required(package, extra)]
            missing = [finding.thing for finding in findings if not finding.ok]
            said = f"lacks {', '.join(missing)}: pip install '{name}[{extra}]'"
            yield Finding(f"{name}[{extra}]", not missing, said if missing else "")


def plugin(name: str) -> Iterator[Finding]:
    """Whether a plugin loads, has data, and can be evaluated."""
    try:
        spec = modalities.get(name)
    except UserError as error:
        yield Finding("loads", False, str(error))
        return
    yield Finding("loads", True, f"version {spec.api_version} of the contract")
    try:
        settings = config.defaults(spec)
    except UserError as error:
        yield Finding("configuration", False, str(error))
        return
    settings.modality = name
    questions = {"evaluation": lambda: ", ".join(f.name for f in spec.features(settings))}
    if spec.find_data:
        questions = {"data": lambda: spec.location(settings), **questions}
    for thing, ask in questions.items():
        try:
            yield Finding(thing, True, str(ask()))
        except UserError as error:
            yield Finding(thing, False, str(error))
        except Exception as error:  # somebody's plugin may fail in any way
            yield Finding(thing, False, f"broken: {type(error).__name__}: {error}")
    if spec.checkpoints:
        shipped = sorted(path.name for path in spec.checkpoints.glob("*.safetensors"))
        yield Finding(
            "checkpoints", bool(shipped), ", ".join(shipped) or f"none in {spec.checkpoints}"
        )


def required(package: Distribution, extra: str | None) -> Iterator[Requirement]:
    """What a package needs on this machine: always, or for one of its extras alone."""
    for line in package.requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always if extra is None else not always and marker.evaluate({"extra": extra}):
            yield requirement


def wanted(requirement: Requirement) -> Finding:
    """Whether a requirement is installed, and in a version that fits."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, False, f"not installed: pip install '{requirement}'")
    fits = requirement.specifier.contains(found, prereleases=True)
    said = found if fits else f"{found} is none of {requirement.specifier}"
    return Finding(requirement.name, fits, said)


def _existing(folder: os.PathLike) -> os.PathLike:
    return folder if folder.exists() else _existing(folder.parent)
