"""Which checkpoint a command means: a file, a folder, one of the hub, or the modality's student."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from scm_core.base.arguments import Overrides, parse, section
from scm_core.base.device import best_device
from scm_core.base.errors import UserError
from scm_core.base.hub import downloaded
from scm_core.contract import spec as modalities
from scm_core.engine import checkpoint, config

PREFIX = "hub:"
STUDENT = "student.safetensors"
OF_MODEL = ("pretrained", "data.text_encoder", "student.last_time")


def settings_of(kind: type, arguments: list[str]) -> tuple[DictConfig, Overrides]:
    """A command's settings, a dataclass of that kind, and its overrides of the model (`of_model`).

    UserError for an argument that is neither.
    """
    overrides = parse(arguments)
    decoder = of_model(overrides)
    return config.merge(OmegaConf.structured(kind), ("command line", overrides)), decoder


def of_model(overrides: Overrides) -> Overrides:
    """What a command's overrides say of the model that may differ from how it was trained.

    That is its section `decoder`, the pretrained pipeline, the text encoder, and where its sampler
    looks last. They are taken out.
    """
    found = section(overrides, "decoder")
    for key in OF_MODEL:
        if key in overrides:
            found[key] = overrides.pop(key)
    return found


def open_checkpoint(
    path: str | None,
    modality: str | None,
    decoder: Overrides | None = None,
    device: str | None = None,
) -> checkpoint.Checkpoint:
    """The named checkpoint, else the student of the modality, on that or else the best device.

    That is the shipped one, or else the one trained last in a `runs/MODALITY-*`, from here.

    `decoder` are overrides by `of_model`, which replace what it was trained with.
    """
    device = device or best_device()
    if path:
        shared = path.startswith(PREFIX) or Path(path).is_dir()
        return checkpoint.load(find(path) if shared else path, modality, device, decoder)
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


def find(name: str) -> Path:
    """The student in a folder, or of `hub:OWNER/NAME`, which is downloaded once."""
    if not name.startswith(PREFIX):
        return Path(name) / STUDENT
    complaint, patterns = f"{name} cannot be downloaded", ["*.safetensors", "*.json"]
    folder = downloaded(name.removeprefix(PREFIX), complaint, allow_patterns=patterns)
    return folder / STUDENT
