"""Samples as files that say how they were made, and by whose signature."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import scm_core
from scm_core.apps.sharing.signing import Signer
from scm_core.base.errors import UserError
from scm_core.contract.fields import Condition, shown
from scm_core.data import media, provenance
from scm_core.engine.checkpoint import Checkpoint
from scm_core.engine.sampling import SAMPLER, STEPS, TEACHER_STEPS, SignConfig


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
    model: Checkpoint,
    decoded: Any,
    folder: Path,
    facts: list[provenance.Facts],
    signer: Signer | None = None,
) -> list[Path]:
    """An overview of all samples, then one file each, which say how they were made, signed.

    The `facts` are those of the overview, then of each sample. UserError when the disk refuses.
    """
    with provenance.stating(facts[0], signer):
        files = [media.write_png(model.codec.preview(decoded), folder / "overview.png")]
    try:
        for i, one in enumerate(decoded):
            with provenance.stating(facts[1 + i], signer):
                files.append(model.codec.save(one, folder / f"{i:05d}"))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    return files


def provenance_of(model: Checkpoint, settings: Any, condition: Condition) -> list[provenance.Facts]:
    """What the overview, and what each sample says of how it was made."""
    student = model.stage == "student"
    how = {"steps": settings.steps or (STEPS if student else TEACHER_STEPS)}
    if student:
        how |= {"last_time": round(model.ends[1], 4)}
    else:
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
        {key if key not in whole else f"condition.{key}": one for key, one in given.items()}
        for given in (shown(model.condition, condition, i) for i in range(settings.n))
    ]
    return [whole, *({**whole, "sample": i, **given} for i, given in enumerate(named))]
