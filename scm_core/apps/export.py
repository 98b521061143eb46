"""A student as one graph, or as what it was made of: a pipeline of diffusers."""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from scm_core.apps import export_pipeline
from scm_core.apps.opening import open_checkpoint, settings_of
from scm_core.base import console
from scm_core.base.arguments import place
from scm_core.base.errors import UserError, first_line
from scm_core.base.files import check_room, replacing
from scm_core.contract.fields import Condition
from scm_core.engine import sampling
from scm_core.engine.checkpoint import Checkpoint
from scm_core.engine.sampling import STEPS
from scm_core.method import samplers

NEEDS = "export as ONNX needs onnx, onnxscript and onnxruntime: pip install 'scm-core[export]'"
TRACED, COMPARED, ROUNDS = 3, 8, 5  # samples that are traced and compared, and timed runs
PIPELINE = "diffusers"  # format= of a folder, which takes any number of steps
BAR = 1e-3  # what PyTorch and the graph may differ by, relative to the output's norm

Run = Callable[[Tensor, Condition], Tensor]


@dataclass
class ExportConfig:
    """What to export, how, and where to."""

    checkpoint: str | None = place()
    modality: str | None = None
    format: str = "onnx"
    steps: int = STEPS
    out: str | None = place()


class StudentGraph(nn.Module):
    """All steps of a student, and the part of its decoder that is a graph."""

    def __init__(self, model: Checkpoint, steps: int) -> None:
        super().__init__()
        self.backbone, self.sigma_data = model.backbone, model.sigma_data
        self.times = samplers.consistency_times(steps, model.sigma_data, model.ends)
        self.autoencoder = model.codec.autoencoder  # with weights to be found
        self.traced = model.codec.traced
        self.shape = (steps, *model.shape)

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        """Media, or what comes before them, of noise N(0, 1), (steps, B, C, *grid)."""
        first, *later = noise.unbind(0)
        later = iter(later)
        x = samplers.consistency(
            self.backbone,
            self.sigma_data * first,
            self.times,
            self.sigma_data,
            condition,
            fresh=lambda _: next(later),
        )
        return self.traced(x)


def main(arguments: list[str]) -> None:
    """Write the graph, compare it, and say what came of it."""
    settings, decoder = settings_of(ExportConfig, arguments)
    if not settings.out:
        raise UserError("write it to which file? give out=FILE")
    if settings.format not in (*WRITERS, PIPELINE):
        raise UserError(f"format={settings.format} is none of {', '.join((*WRITERS, PIPELINE))}")
    if settings.steps < 1:
        raise UserError(f"steps={settings.steps} must be at least 1")
    check_room(Path(settings.out).parent)
    model = open_checkpoint(settings.checkpoint, settings.modality, decoder, device="cpu")
    if model.stage != "student":
        raise UserError(f"{model.path} holds a {model.stage}; only a student is a few steps")
    if settings.format == PIPELINE:
        return export_pipeline.main(model, Path(settings.out))
    student = StudentGraph(model, settings.steps).eval()
    path = Path(settings.out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        run = WRITERS[settings.format](student, inputs(model, settings.steps, TRACED), path)
    noise, condition = inputs(model, settings.steps, COMPARED)
    error = difference(run(noise, condition), student(noise, condition))
    ours, theirs = (seconds(each, noise, condition) for each in (student, run))
    console.console.print(
        f"{path}: relative error {error:.1e} to PyTorch in float32; {COMPARED} samples take"
        f" {1e3 * theirs:.1f} ms, PyTorch {1e3 * ours:.1f} ms",
        soft_wrap=True,
    )
    if not error <= BAR:  # nor NaN
        raise UserError(f"{path} differs from PyTorch by more than {BAR:g}: do not use it")


def inputs(model: Checkpoint, steps: int, n: int) -> tuple[Tensor, Condition]:
    """Seeded noise, and conditions in turn, of `n` samples."""
    generator = torch.Generator().manual_seed(n)
    noise = torch.randn(steps, n, *model.shape, generator=generator)
    return noise, sampling.cycled_condition(model.condition, n)


def program(
    student: StudentGraph, example: tuple[Tensor, Condition]
) -> torch.export.ExportedProgram:
    """The graph, of as many batch sizes as the network takes; UserError where that is one."""
    batch = torch.export.Dim.DYNAMIC  # U-Nets of diffusers have another graph from 64 samples on
    shapes = ({1: batch}, {key: {0: batch} for key in example[1]})
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # as far as it came, in thousands of lines
            return torch.export.export(student, example, dynamic_shapes=shapes)
    except Exception as error:  # of many kinds
        raise UserError(
            "the student is no graph that takes any batch: its network computes by the batch's "
            "size or by what is in it; draw by scm_core.sample or scm_core.serve, or write a "
            f"student of pretrained= by format=diffusers ({first_line(error)})"
        ) from error


def write_torch(student: StudentGraph, example: tuple[Tensor, Condition], path: Path) -> Run:
    """Write a .pt2 and return what it does."""
    content = io.BytesIO()  # torch's own files end the process where a disk is full
    torch.export.save(program(student, example), content)
    with replacing(path) as part:
        part.write_bytes(content.getbuffer())
    return torch.export.load(path).module()


def write_onnx(student: StudentGraph, example: tuple[Tensor, Condition], path: Path) -> Run:
    """Write an ONNX file and return what it does in onnxruntime, on the CPU."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{NEEDS} ({error.name} is missing)") from None
    names = ["noise", *example[1]]
    found = torch.onnx.export(
        program(student, example), input_names=names, output_names=["media"], verbose=False
    )
    with replacing(path) as part, TemporaryDirectory(dir=part.parent) as made:
        found.save(Path(made) / path.name)  # its name is part of what a large graph says
        os.replace(Path(made) / path.name, part)
        for weights in Path(made).iterdir():  # of more than a file of protobuf may hold
            os.replace(weights, path.with_name(weights.name))
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # as of PixArt, whose `squeeze` of a wide axis ONNX does not know
        raise UserError(
            f"{path} is no graph that onnxruntime takes: use format=torch ({first_line(error)})"
        ) from error

    def run(noise: Tensor, condition: Condition) -> Tensor:
        given = {"noise": noise, **condition}
        fed = {node.name: given[node.name].numpy() for node in session.get_inputs()}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


WRITERS = {"onnx": write_onnx, "torch": write_torch}


def difference(found: Tensor, expected: Tensor) -> float:
    """The norm of the error over that of what is expected."""
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm()).item()


@torch.no_grad()
def seconds(run: Run, noise: Tensor, condition: Condition) -> float:
    """The median of a few runs."""
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run(noise, condition)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
