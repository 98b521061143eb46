"""From the command's arguments to files of samples."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

import scm_core
from scm_core.apps import hub
from scm_core.base import console, distributed
from scm_core.base.arguments import Words, parse, place, section, word
from scm_core.base.device import best_device
from scm_core.base.errors import UserError
from scm_core.contract import spec as modalities
from scm_core.contract.fields import Condition, Label, Schema, Vector
from scm_core.data import media, provenance
from scm_core.data.signing import Signer
from scm_core.engine import checkpoint, config, sampling

STEPS = 2  # of a student
SAMPLER, TEACHER_STEPS = "dpm", 32


@dataclass
class SignConfig:
    """PEM files: a certificate, with those between it and its CA behind it, and its key."""

    certificate: str | None = place()
    key: str | None = place()


@dataclass
class SampleConfig:
    """What to draw, and where to; the condition's own names come on top."""

    checkpoint: str | None = place()
    modality: str | None = None
    steps: int | None = None
    sampler: str | None = None
    guidance: float | None = None
    n: int = 64
    batch_size: int = 64
    seed: int = 0
    out: str = "samples"
    sign: SignConfig = field(default_factory=SignConfig)


def main(arguments: list[str]) -> None:
    """Draw, decode and write the samples that the words ask for."""
    words = parse(arguments)
    decoder = section(words, "decoder")
    where = (word(words, key) for key in ("checkpoint", "modality"))
    model = open_checkpoint(*where, decoder)
    asked = {key: words.pop(key) for key in list(words) if key in model.condition}
    known = OmegaConf.structured(SampleConfig)
    try:
        settings = config.merge(known, ("command line", words))
    except UserError as error:
        raise UserError(f"{error} (conditions: {', '.join(model.condition) or 'none'})") from None
    if settings.n < 1 or settings.batch_size < 1:
        raise UserError("n and batch_size must be at least 1")
    signer = signer_of(settings.sign)
    condition = parse_condition(model.condition, asked, settings.n)
    refuse_null(model, condition)
    draw = drawer(model, settings.sampler, settings.steps, settings.guidance)
    started = time.perf_counter()
    with console.together() as first:
        x = draw_all(model, draw, condition, settings.n, settings.seed, settings.batch_size)
    if not first:
        return
    pictures = model.decoder.decode(x.to(model.device))
    seconds = time.perf_counter() - started
    facts = provenance_of(model, settings, condition)
    out = Path(settings.out)
    before = samples_in(out)
    files = write(model, pictures, out, facts, signer)
    console.console.print(
        f"{settings.n} samples in {seconds:.2f} s from {model.path}: {files[0]}"
        f" and {len(files) - 1} files beside it"
    )
    if older := sorted(path.name for path, _ in samples_in(out).items() & before.items()):
        named = older[0] if len(older) == 1 else f"{len(older)} files, {older[0]} to {older[-1]}"
        console.console.print(
            f"{out} still has samples that were drawn before: {named}", soft_wrap=True
        )
    if signer and (unsigned := unsigned_like(files[1])):
        console.console.print(
            f"not signed, as the decoder writes them itself: {', '.join(unsigned)}"
        )


def open_checkpoint(
    path: str | None,
    modality: str | None,
    decoder: Words | None = None,
    device: str | None = None,
) -> checkpoint.Checkpoint:
    """The named checkpoint, else the student of the modality, on that or else the best device.

    That is the shipped one, or else the one trained last below `runs` in the working directory.

    `decoder` are words of the modality's section `decoder`, which replace what it was trained with.
    """
    device = device or best_device()
    if path:
        shared = path.startswith(hub.PREFIX) or Path(path).is_dir()
        return checkpoint.load(hub.find(path) if shared else path, modality, device, decoder)
    if not modality:
        raise UserError("sample from what? give checkpoint=FILE, or modality=NAME")
    spec = modalities.get(modality)
    shipped = [spec.checkpoints / "student.safetensors"] if spec.checkpoints else []
    trained = Path("runs").glob(f"{spec.name}-*/student.safetensors")
    found = [*shipped, *sorted(trained, key=lambda path: -path.stat().st_mtime)]
    existing = [path for path in found if path.exists()]
    if not existing:
        raise UserError(f"modality {modality} ships no checkpoint: train one, give checkpoint=FILE")
    return checkpoint.load(existing[0], modality, device, decoder)


def parse_condition(schema: Schema, asked: Mapping[str, str | list[str]], n: int) -> Condition:
    """`n` conditions from the words given; a list cycles, what is not given goes in turn."""
    condition = sampling.cycled_condition(schema, n)
    for key, value in asked.items():
        field = schema[key]
        if isinstance(value, list):
            values = [field.parse(word) for word in value]
        else:
            values = field.parse_list(value) if isinstance(field, Label) else [field.parse(value)]
        parsed = torch.tensor(values)
        condition[key] = parsed[torch.arange(n) % len(parsed)]
    return condition


def refuse_null(model: checkpoint.Checkpoint, condition: Condition) -> None:
    """UserError where a student would be asked for a vector that it has never seen, the null."""
    vectors = [key for key, kind in model.condition.items() if isinstance(kind, Vector)]
    if model.stage == "student" and (null := [k for k in vectors if not condition[k].any()]):
        key = null[0]
        raise UserError(f"{model.path} holds no {key} to draw by: give {key}=NUMBER,NUMBER,...")


def drawer(
    model: checkpoint.Checkpoint,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Callable[..., Tensor]:
    """The sampling function that suits the checkpoint's stage; UserError for a wrong wish."""
    if steps is not None and steps < 1:
        raise UserError(f"steps={steps} must be at least 1")
    baked = model.config.student.guidance
    if model.stage == "student":
        if sampler not in (None, "consistency"):
            raise UserError(f"sampler={sampler} is for a teacher; a student takes steps= alone")
        if guidance not in (None, baked):
            raise UserError(f"this student was distilled at guidance {baked}; leave guidance= out")
        return sampling.sampler("consistency", steps or STEPS, model.sigma_data)
    if sampler == "consistency":
        raise UserError("a teacher cannot be sampled by consistency steps; use ddim, heun or dpm")
    scale = baked if guidance is None else guidance
    name, steps = sampler or SAMPLER, steps or TEACHER_STEPS
    return sampling.sampler(name, steps, model.sigma_data, scale, model.condition)


@torch.no_grad()
def draw_all(
    model: checkpoint.Checkpoint,
    draw: Callable[..., Tensor],
    condition: Condition,
    n: int,
    seed: int,
    batch_size: int,
) -> Tensor:
    """`n` samples x (n, C, *grid) on the CPU, the same for the same seed and batch size.

    Processes that work together draw one batch each in turn, and all of them get all samples.
    """
    device, drawn = model.device, []
    for part in distributed.turns(sampling.batches(n, batch_size)):
        noise = sampling.seeded_noise(
            model.shape, part.stop - part.start, seed, model.sigma_data, first=part.start
        )
        there = {key: value[part].to(device) for key, value in condition.items()}
        generator = sampling.fresh_noise(seed, part.start)
        drawn.append(draw(model.model, noise.to(device), there, generator).cpu())
    return torch.cat(distributed.in_turn(drawn))


def signer_of(files: SignConfig) -> Signer | None:
    """Who signs, if anybody; UserError where the files will not do."""
    if not files.certificate and not files.key:
        return None
    if not files.certificate or not files.key:
        raise UserError("to sign takes two files: sign.certificate=FILE and sign.key=FILE")
    return Signer(files.certificate, files.key)


def samples_in(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files in a folder that are called as samples are; what differs once one is rewritten."""
    named = (path for path in folder.glob("*") if re.fullmatch(r"\d{5,}\..+", path.name))
    return {path: (stat.st_ino, stat.st_mtime_ns) for path in named for stat in [path.stat()]}


def unsigned_like(sample: Path) -> list[str]:
    """Endings of the files of a sample that have no manifest."""
    beside = sample.parent.glob(f"{sample.stem}.*")
    return sorted(path.suffix for path in beside if not provenance.has_manifest(path))


def write(
    model: checkpoint.Checkpoint,
    decoded: Any,
    folder: Path,
    facts: list[provenance.Facts],
    signer: Signer | None = None,
) -> list[Path]:
    """An overview of all samples, then one file each, which say how they were made, signed.

    The `facts` are those of the overview, then of each sample. UserError when the disk refuses.
    """
    with provenance.stating(facts[0], signer):
        files = [media.write_png(model.decoder.preview(decoded), folder / "overview.png")]
    try:
        for i, one in enumerate(decoded):
            with provenance.stating(facts[1 + i], signer):
                files.append(model.decoder.save(one, folder / f"{i:05d}"))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    return files


def provenance_of(
    model: checkpoint.Checkpoint, settings: Any, condition: Condition
) -> list[provenance.Facts]:
    """What the overview, and what each sample says of how it was made."""
    student = model.stage == "student"
    how = {"steps": settings.steps or (STEPS if student else TEACHER_STEPS)}
    if not student:
        how |= {"sampler": settings.sampler or SAMPLER}
    guidance = settings.guidance
    whole = {
        "made by": f"scm-core {scm_core.__version__}, a generative model",
        "model": f"{model.spec.name} {model.stage}, step {model.step}",
        "checkpoint sha256": model.sha256,
        **how,
        "guidance": model.config.student.guidance if guidance is None else guidance,
        "seed": settings.seed,
        "n": settings.n,
        "batch_size": settings.batch_size,
    }
    named = [
        {key: model.condition[key].shown(value[i]) for key, value in condition.items()}
        for i in range(settings.n)
    ]
    return [whole, *({**whole, "sample": i, **given} for i, given in enumerate(named))]
