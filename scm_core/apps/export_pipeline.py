"""A student of a pretrained network as a pipeline of diffusers, which samples it without us."""

from __future__ import annotations

import inspect
import json
import shutil
import statistics
from pathlib import Path

import torch
from torch import Tensor

from scm_core.base import console
from scm_core.base.errors import UserError
from scm_core.base.files import save_tensors, write_text
from scm_core.engine.checkpoint import Checkpoint
from scm_core.engine.storage import read
from scm_core.method.samplers import LAST_TIME
from scm_core.networks.lora import A, B
from scm_core.networks.pretrained import Adapter, Pipeline
from scm_core.networks.pretrained.folder import INDEX
from scm_core.networks.pretrained.schedule import scheduler

LORA = "pytorch_lora_weights.safetensors"  # as diffusers calls it
OWN_SIGMAS = "1 / num_inference_steps"  # in a pipeline's source, where it makes the last of them
NETWORK = "network."  # before the names of an adapter's weights
ROUNDING = 1e-6  # of a matrix's largest singular value, what is too small to count


def main(model: Checkpoint, out: Path) -> None:
    """Write the folder, and say how it is sampled."""
    adapter, pipeline = student_of(model), Pipeline.open(model.config.pretrained)
    write(adapter, pipeline, out, model.ends[1], lora_in(model.path, adapter, pipeline))
    guidance = " and guidance_scale=1" * guided(str(pipeline.index.get("_class_name")))
    console.console.print(
        f"{out}: diffusers.DiffusionPipeline.from_pretrained({str(out)!r}) loads it; call it with "
        f"num_inference_steps=2{guidance}",
        soft_wrap=True,
    )


def student_of(model: Checkpoint) -> Adapter:
    """The backbone of a student of a pretrained network; UserError for any other."""
    if not isinstance(model.backbone, Adapter):
        raise UserError(
            f"{model.path} is no student of pretrained=, whose pipeline format=diffusers would "
            "write; use format=onnx or format=torch"
        )
    return model.backbone


def write(
    adapter: Adapter,
    pipeline: Pipeline,
    out: Path,
    last: float = LAST_TIME,
    lora: dict[str, Tensor] | None = None,
) -> None:
    """Write the `pipeline` with the adapter's network and a scheduler whose last time is `last`.

    Of a LoRA student the matrices alone are written beside it, for `load_lora_weights`. UserError
    for a folder that is there, a full disk, and a network that no scheduler of diffusers is for.
    """
    if out.exists():
        raise UserError(f"out={out} is there already: name a folder that is not")
    handed = own_sigmas(str(pipeline.index.get("_class_name")))
    found = scheduler(adapter.path, pipeline.scheduler, handed, last)
    if found is None:
        raise UserError(
            f"pretrained={pipeline.name}: diffusers has no scheduler for consistency models of its "
            "kind (EDM); use format=onnx or format=torch"
        )
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for name in components(pipeline):
            shutil.copytree(pipeline.folder / name, part / name)
        adapter.network.save_pretrained(part / pipeline.part)
        index = pipeline.index | {"scheduler": ["diffusers", found["_class_name"]]}
        write_text(part / INDEX, json.dumps(index, indent=2))
        write_text(part / "scheduler" / "scheduler_config.json", json.dumps(found, indent=2))
        if lora:
            save_tensors(part / LORA, lora, metadata(lora, pipeline.part))
        part.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def components(pipeline: Pipeline) -> list[str]:
    """The folders of a pipeline's parts that are taken as they are."""
    changed = (pipeline.part, "scheduler")
    return [
        key for key in pipeline.index if key not in changed and (pipeline.folder / key).is_dir()
    ]


def own_sigmas(kind: str) -> bool:
    """Whether a class of diffusers hands its scheduler the sigmas 1, ..., 2/n, 1/n."""
    import diffusers

    found = getattr(diffusers, kind, None)
    return OWN_SIGMAS in inspect.getsource(found.__call__) if found else False


def guided(kind: str) -> bool:
    """Whether pipelines of a class of diffusers take a guidance_scale."""
    import diffusers

    found = getattr(diffusers, kind, None)
    return bool(found) and "guidance_scale" in inspect.signature(found.__call__).parameters


def lora_in(path: Path, adapter: Adapter, pipeline: Pipeline) -> dict[str, Tensor] | None:
    """The matrices that a student's file holds, and those of its embedding of time, which it does
    not; None where it holds whole weights."""
    described, weights = read(path)
    lora = described.get("lora")
    if not lora:
        return None
    found = lora_of(pipeline.part, weights, lora["alpha"] / lora["rank"])
    return found | slowed_in(adapter, pipeline) if lora.get("slow") else found


def lora_of(part: str, weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """An adapter's A and B as diffusers names them, with its `alpha / rank` in B."""
    named = {f"{part}.{key.removeprefix(NETWORK)}": value for key, value in weights.items()}
    return {key: value * scale if B in key else value for key, value in named.items()}


def slowed_in(adapter: Adapter, pipeline: Pipeline) -> dict[str, Tensor]:
    """Matrices that make the pipeline's embeddings of time what the adapter's are."""
    from diffusers.models.embeddings import TimestepEmbedding

    before, found = pipeline.network(), {}
    for name, module in adapter.network.named_modules():
        for end in ("linear_1", "linear_2") if isinstance(module, TimestepEmbedding) else ():
            layer = f"{name}.{end}"
            change = module.get_submodule(end).weight - before.get_submodule(layer).weight
            if change.any():
                key = f"{pipeline.part}.{layer}"
                found[key + A], found[key + B] = factors(change)
    return found


@torch.no_grad()
def factors(change: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's change (M, N) as A and B, of as high a rank as it takes up to rounding."""
    left, sizes, right = torch.linalg.svd(change.double(), full_matrices=False)
    rank = int((sizes > ROUNDING * sizes[0]).sum())
    return right[:rank].float().contiguous(), (left[:, :rank] * sizes[:rank]).float().contiguous()


def metadata(lora: dict[str, Tensor], part: str) -> dict[str, str]:
    """The ranks of all layers: before 0.40 diffusers takes them all for scaled as the first is."""
    named = {key.removeprefix(f"{part}."): value for key, value in lora.items()}
    ranks = {key.removesuffix(B): v.shape[1] for key, v in named.items() if key.endswith(B)}
    rank = statistics.mode(ranks.values())
    others = {f"^{name}": other for name, other in ranks.items() if other != rank}
    about = {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others}
    about["target_modules"] = sorted(ranks)
    packed = {f"{part}.{key}": value for key, value in about.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(packed)}
