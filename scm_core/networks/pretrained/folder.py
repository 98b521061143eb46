"""A pipeline of diffusers, from its folder or by its name on the hub: what its files say.

Nothing that a file names is imported: a class is looked up by its name among those with a row in
`families.py`, and weights are read from safetensors alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scm_core.base.errors import UserError, first_line
from scm_core.base.hub import downloaded
from scm_core.method.conversions import EDM, RectifiedFlow, VariancePreserving
from scm_core.networks.pretrained.adapter import Adapter
from scm_core.networks.pretrained.families import FAMILIES, Family

NEEDS = "pretrained needs the package diffusers: pip install 'scm-core[diffusers]'"
INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WANTED = [INDEX, *(f"*/*.{ending}" for ending in ("json", "safetensors", "txt", "model"))]
VARIANTS = ["*.fp16.*", "*.bf16.*", "*.non_ema.*"]  # of weights that are there in float32 too
PARTS = ("transformer", "unet")
BLOCK = 1 << 24  # bytes of a file that are hashed at a time

# By the scheduler's class, what a network has learnt; all others with `betas` are VP diffusion.
EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
COSINE_EDM = "CosineDPMSolverMultistepScheduler"
FLOWS = ("FlowMatch", "LTXEulerAncestralRF")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's folder, called `name` by the user, the `index` of its parts, and the configs of
    its network, which lies in its folder `part`, its scheduler, and its vae where it has one."""

    name: str
    folder: Path
    index: dict[str, Any]
    part: str
    config: dict[str, Any]
    scheduler: dict[str, Any]
    vae: dict[str, Any] | None

    @classmethod
    def open(cls, name: str) -> Pipeline:
        """The pipeline in a folder, or of OWNER/NAME on the hub, which is downloaded once.

        UserError for what is none, and for a network of a class without a row in `FAMILIES`.
        """
        folder = located(name)
        if not (folder / INDEX).is_file():
            raise UserError(
                f"pretrained={name} is no pipeline of diffusers: it has no {INDEX} (a folder that "
                "save_pretrained has written, or OWNER/NAME of the hub, is one)"
            )
        part = next((part for part in PARTS if (folder / part / CONFIG).is_file()), None)
        if part is None:
            raise UserError(f"pretrained={name} has neither a transformer nor a unet")
        if (folder / f"{part}_2" / CONFIG).is_file():
            raise UserError(f"pretrained={name} has two networks, of which one alone is supported")
        vae = folder / "vae" / CONFIG
        found = cls(
            name,
            folder,
            _read(folder / INDEX, name),
            part,
            _read(folder / part / CONFIG, name),
            _read(folder / "scheduler" / SCHEDULER, name),
            _read(vae, name) if vae.is_file() else None,
        )
        found.family  # noqa: B018 (an unknown class is refused at once)
        entry = found.index.get(part)  # a library and a class
        named = entry[-1] if isinstance(entry, list) and entry else None
        if named not in (None, "Transformer2DModel", found.config["_class_name"]):
            raise UserError(
                f"pretrained={name}: its {INDEX} names a {named} where its {part} is a "
                f"{found.config['_class_name']}; one of them is of another model"
            )
        return found

    @property
    def kind(self) -> str:
        """The network's class; early DiT and PixArt were called something else."""
        kind = str(self.config.get("_class_name"))
        early = {"ada_norm_zero": "DiT", "ada_norm_single": "PixArt"}
        known = early.get(self.config.get("norm_type")) if kind == "Transformer2DModel" else None
        return f"{known}Transformer2DModel" if known else kind

    @property
    def family(self) -> Family:
        """How the network's class is called."""
        if self.kind not in FAMILIES:
            close = difflib.get_close_matches(self.kind, FAMILIES, n=1, cutoff=0.0)[0]
            raise UserError(
                f"pretrained={self.name} is a {self.kind}, which is not supported; the nearest that"
                f" is: {close} (docs/pretrained.md lists them)"
            )
        return FAMILIES[self.kind]

    @property
    def factor(self) -> int:
        """How many pixels a cell of its latents has a side; 1 without a vae."""
        vae = self.vae or {}
        blocks = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0]
        patch = vae.get("patch_size")
        found = 2 ** (len(blocks) - 1) * (patch if isinstance(patch, int) else 1)
        return vae.get("scale_factor_spatial") or found

    @cached_property
    def source(self) -> str:
        """A hash of the network's weights and of what says how to read them."""
        digest = hashlib.sha256()
        files = [self.folder / self.part / CONFIG, self.folder / "scheduler" / SCHEDULER]
        for path in [*files, *sorted((self.folder / self.part).glob("*.safetensors"))]:
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def path(self) -> nn.Module:
        """What its network has learnt, by its scheduler: one of `method.conversions`."""
        kind, config = str(self.scheduler.get("_class_name")), self.scheduler
        predicts = config.get("prediction_type", "epsilon")
        flows = config.get("use_flow_sigmas") or predicts == "flow_prediction"
        if kind.startswith(FLOWS) or flows:
            steps = config.get("num_train_timesteps", 1000)
            steps = 1 if self.family.unit_time else steps * self.config.get("timestep_scale", 1)
            return RectifiedFlow(steps, self.family.reversed or config.get("invert_sigmas", False))
        if kind in (*EDMS, COSINE_EDM):
            sign = 1 if predicts == "v_prediction" else -1
            sd = config.get("sigma_data", 1.0 if kind == COSINE_EDM else 0.5)
            return EDM(sd, kind == COSINE_EDM, sign)
        try:
            scheduler = getattr(_diffusers().schedulers, kind).from_config(config)
            return VariancePreserving(scheduler.alphas_cumprod, predicts)
        except (AttributeError, ValueError, TypeError) as error:
            raise UserError(
                f"pretrained={self.name} has a {kind} with prediction_type={predicts}, whose "
                "networks are not supported"
            ) from error

    def network(self) -> nn.Module:
        """The network with its weights, float32; UserError where they are not to be read."""
        library, folder = _diffusers(), self.folder / self.part
        if "quantization_config" in self.config:
            raise UserError(f"pretrained={self.name} is quantised: name the weights it was made of")
        if not any(folder.glob("*.safetensors")):
            pickles = any(folder.glob("*.bin"))
            has = "weights in pickles alone, which can execute code" if pickles else "no weights"
            raise UserError(
                f"pretrained={self.name} has {has}: convert them by diffusers' save_pretrained, "
                "which writes safetensors"
            )
        kind = getattr(library, self.kind)
        options = {"use_safetensors": True, "torch_dtype": torch.float32}
        if not kind._keep_in_fp32_modules:  # which diffusers reads by accelerate alone
            options["low_cpu_mem_usage"] = False
        try:
            return kind.from_pretrained(folder, **options)
        except Exception as error:  # diffusers raises all kinds
            raise UserError(
                f"pretrained={self.name} cannot be read: {first_line(error)}"
            ) from error

    def adapter(self, fields: Mapping[str, Any]) -> Adapter:
        """The network as a backbone under these fields of a condition."""
        if not self.family.label and "prompt" not in fields:
            raise UserError(
                f"pretrained={self.name} is asked by texts, which the data have not: give captions"
            )
        known = self.source, self.factor, self.scheduler
        return Adapter(self.network(), self.path(), self.family, fields, *known)


def located(name: str) -> Path:
    """The folder of that name, or what the hub has under OWNER/NAME, downloaded once."""
    folder = Path(name)
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return folder
    patterns = {"allow_patterns": WANTED, "ignore_patterns": VARIANTS}
    return downloaded(name, f"pretrained={name} cannot be read", **patterns)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError:
        raise UserError(NEEDS) from None
    return diffusers


def _read(path: Path, name: str) -> dict[str, Any]:
    """A config of a pipeline."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"pretrained={name} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"pretrained={name} cannot be read: {path.name} holds no config")
    return found
