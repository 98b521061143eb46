"""Share a model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from scm_core.apps.opening import PREFIX, STUDENT, open_checkpoint, settings_of
from scm_core.base import console
from scm_core.base.arguments import Overrides, place
from scm_core.base.errors import UserError, first_line, visible
from scm_core.base.files import copy, write_text
from scm_core.base.hub import NEEDS
from scm_core.engine import storage
from scm_core.engine.checkpoint import Checkpoint

WEIGHTS = ("teacher.safetensors", "decoder.safetensors")  # beside it
FIGURES = ("metrics.json", "quality_time.png", "trajectories.png")
CARD = "README.md"
UNEVALUATED = "It has not been evaluated."


@dataclass
class ShareConfig:
    """What to share, and where to put it."""

    checkpoint: str | None = place()
    modality: str | None = None
    out: str | None = place()
    bits: int = 16
    licence: str | None = None
    repository: str | None = None


def main(arguments: list[str]) -> None:
    """Write the folder, and upload it where that is asked for."""
    settings, decoder = settings_of(ShareConfig, arguments)
    if not settings.out:
        raise UserError("share it in which folder? give out=FOLDER")
    model = open_checkpoint(settings.checkpoint, settings.modality, decoder)
    if model.stage != "student":
        raise UserError(f"{model.path} holds a {model.stage}; checkpoint= wants a student")
    if settings.bits not in (8, 16):
        raise UserError(f"bits={settings.bits} is neither 8 nor 16")
    place = f"{PREFIX}{settings.repository}" if settings.repository else settings.out
    folder = Path(settings.out)
    chosen = model.config.student.last_time if "student.last_time" in decoder else None
    same = settings.bits == 16 and chosen is None and measured(model)
    needs = {key: text for key, text in decoder.items() if key != "student.last_time"}
    described = card(model, settings.licence, place, evaluated=same, needs=needs)
    files = save(model.path, folder, settings.bits, described, chosen, FIGURES if same else ())
    console.console.print(f"{folder}: {', '.join(files)}")
    if settings.repository:
        console.console.print(upload(folder, files, settings.repository))


def measured(model: Checkpoint) -> bool:
    """Whether the figures beside a student are its own: of these weights, by this sampler.

    It says so where they are another's, as after more training, or an evaluation of other weights
    in the same folder.
    """
    path = _beside(model.path, "metrics.json")
    if path is None:
        return False
    try:
        found = json.loads(path.read_text())
        student, last = found["student"]["sha256"], found.get("last_time", model.ends[1])
    except Exception as error:  # a file that came with a model may hold anything
        raise UserError(f"{path} holds no figures of scm_core.evaluate") from error
    if (student, last) == (model.sha256, model.ends[1]):
        return True
    said = f"{path} is of another student than {model.path.name}: left out; evaluate it again"
    console.console.print(said, soft_wrap=True)
    return False


def save(
    student: Path,
    folder: Path,
    bits: int,
    described: str,
    last_time: float | None = None,
    figures: Sequence[str] = (),
) -> list[str]:
    """Write a student, its teacher and decoder, its card, and its `figures`; the names of these
    files.

    The student is told a `last_time` that was chosen after its training. UserError when the disk
    refuses, for weights that are NaN or Inf, and for a folder with files of another model.
    """
    found = {name: _beside(student, name) for name in (*WEIGHTS, *figures)}
    sources = {STUDENT: student, **{name: path for name, path in found.items() if path}}
    if folder.resolve() == student.resolve().parent:
        raise UserError(f"out={folder} is where the model itself lies: choose another folder")
    if left := [n for n in (*WEIGHTS, *FIGURES) if n not in sources and (folder / n).exists()]:
        raise UserError(f"out={folder} has {left[0]} of another model: choose another folder")
    for name in {STUDENT, *WEIGHTS} & sources.keys():
        storage.read(sources[name])  # before anything is written: it may be of no use
    for name, path in sources.items():
        write = storage.shrink if bits == 8 else copy
        write(path, folder / name)
    if last_time is not None:
        storage.restate(folder / STUDENT, last_time)
    write_text(folder / CARD, described)
    return [*sources, CARD]


def _beside(student: Path, name: str) -> Path | None:
    """A file beside a student, None where there is none or it is a link to somewhere else."""
    found = student.with_name(name).resolve()
    return found if found.is_file() and found.parent == student.resolve().parent else None


def upload(folder: Path, files: list[str], repository: str) -> str:
    """Upload these files of a folder and no others, making the repository where there is none.

    Returns what that came to.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(NEEDS) from None
    try:
        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=files)
        return f"uploaded: {done}"
    except Exception as error:
        raise UserError(f"{repository} cannot be uploaded to: {first_line(error)}") from error


def card(
    model: Checkpoint, licence: str | None, place: str, evaluated: bool, needs: Overrides
) -> str:
    """The model card: what it draws, on what it was trained, its figures, how to use it.

    The `place` is what checkpoint= takes to load it, and `needs` are the words beside it without
    which it was not opened here, such as decoder.pretrained=.
    """
    about = {
        "library_name": "scm-core",
        "tags": ["consistency-model", model.spec.name],
        **({"license": licence} if licence else {}),
    }
    conditions = [f"`{visible(key)}`" for key in model.condition] or ["none"]
    source = visible(str(model.statistics.get("source", model.spec.name)))
    named = model.config.modality
    where = f"modality={named} checkpoint={place}" if ":" in named else f"checkpoint={place}"
    where = " ".join([where, *(shlex.quote(f"{key}={text}") for key, text in needs.items())])
    terms = visible(str(model.statistics.get("licence") or ""))
    lines = [
        f"---\n{OmegaConf.to_yaml(about)}---",
        f"# A two-step generator: {model.spec.name}",
        f"A continuous-time consistency model (sCM, arXiv 2410.11081), step {model.step}. A sample "
        f"is {' x '.join(map(str, model.data_shape))}; its conditions: {', '.join(conditions)}.",
        f"Data: {source}{f', licence {terms}' if terms else ''}. "
        f"Weights: {licence or 'the author has not said under which licence'}.",
        f"```bash\npython -m scm_core.sample {where} steps=2 n=16 out=samples\n```",
        _figures(model.path) if evaluated else UNEVALUATED,
    ]
    return "\n\n".join(lines) + "\n"


def _figures(student: Path) -> str:
    path = _beside(student, "metrics.json")
    if path is None:
        return UNEVALUATED
    try:
        return _table(json.loads(path.read_text()))
    except Exception as error:  # a file that came with a model may hold anything
        raise UserError(f"{path} holds no figures of scm_core.evaluate") from error


def _table(metrics: dict[str, Any]) -> str:
    rows, features = metrics["rows"], metrics["features"]
    scores = [key for key in rows[0] if key.endswith("accuracy")]
    heads = ["", "NFE", "ms per sample", f"Frechet distance ({features})", *scores]
    table = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    table += [f"| {' | '.join(_cells(row, features, scores))} |" for row in rows]
    return "\n".join(table) + f"\n\nMeasured on {metrics['device']}, {metrics['date'][:10]}."


def _cells(row: dict[str, Any], features: str, scores: list[str]) -> list[str]:
    costs = ["", ""]
    if "nfe" in row:
        costs = [f"{row['nfe']:g}", f"{1000 * row['seconds_per_sample']:.2f}"]
    values = [f"{row[f'fd_{features}']:.4g}", *(f"{row[score]:.3f}" for score in scores)]
    return [row["name"], *costs, *values]
