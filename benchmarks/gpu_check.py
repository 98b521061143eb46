"""Whether this machine's GPU trains and samples as it should, with figures: some four minutes.

    python benchmarks/gpu_check.py [--data FOLDER] [--out gpu_check.json]

PASS or FAIL of: each modality by its preset `gpu` (teacher, 500 steps of the consistency loss,
samples), a training that is compiled, a resumed run, FSDP2 with one process, exact tangents, what a
student step costs beside a diffusion step, and two steps of 1.5 billion parameters. Commands and
compilers work side by side; whatever is timed has the GPU to itself. Nothing is downloaded:
Fashion-MNIST, or a part of it in FOLDER, and the extra `audio` have to be there. Without a GPU all
of it runs small, to show that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_times import CUDA, TIMED, Result, exact
from torch import multiprocessing

os.environ.update(OMP_NUM_THREADS="2", TORCHINDUCTOR_COMPILE_THREADS="4")  # of many processes each
STEPS, STUDENT_STEPS = (30, 500) if CUDA else (2, 2)


def command(module: str, *words: str, launcher: tuple[str, ...] = ("-m",)) -> list[str]:
    return [sys.executable, *launcher, f"scm_core.{module}", *words]


def output(words: list[str]) -> str:
    """What a command printed; RuntimeError with its last lines where it failed."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-600:])
    return done.stdout


def tangent_size(printed: str) -> float | None:
    """The last |g| that a training printed; None where it had too few steps."""
    watched = re.findall(r"\|g\| ([\d.naif]+)", printed)
    return float(watched[-1]) if watched else None


def modality(name: str, folder: Path, data: list[str]) -> Iterator[Result]:
    """Every stage from the preset `gpu`, eager and in smaller batches, then samples."""
    preset = [f"modality={name}", f"preset={'gpu' if CUDA else 'smoke'}", f"out={folder / name}"]
    few = ["data.batch_size=64", "trainer.compile=false", "data.workers=2"] if CUDA else []
    few += ["data.clips=2000"] if name == "video" and CUDA else []
    few += data if name != "audio" else []
    short = [f"teacher.max_steps={STEPS}"]
    short += [f"decoder.max_steps={STEPS}"] if name == "video" else []
    loss = [f"student.phases=[{{consistency: 1, steps: {STUDENT_STEPS}}}]"]
    ramp = [f"student.options.consistency.tangent_warmup={STUDENT_STEPS // 5}"]
    printed = output(command("train", *preset, *few, *short, *loss, *ramp, "trainer.log_every=2"))
    size = tangent_size(printed)
    student = folder / name / "student.safetensors"
    output(command("sample", f"checkpoint={student}", "n=4", f"out={folder / name / 'drawn'}"))
    yield Result(
        f"{name}, preset gpu: {STEPS} steps of a teacher, {STUDENT_STEPS} of a student, samples",
        f"|g| {size}",
        size is None or size < 5,
    )


def compiled(folder: Path, data: list[str]) -> Iterator[Result]:
    """A teacher and a student with `trainer.compile`, which compiles the student's teacher too."""
    printed = output(
        command(
            "train",
            *("modality=image", f"preset={'gpu' if CUDA else 'smoke'}", "backbone.size=tiny"),
            *(f"trainer.compile={str(CUDA).lower()}", "trainer.log_every=2", "data.workers=2"),
            *(f"out={folder / 'compiled'}", f"teacher.max_steps={STEPS}", *data),
            f"student.phases=[{{endpoint: 1, steps: {STEPS}}}, {{consistency: 1, steps: {STEPS}}}]",
        )
    )
    size = tangent_size(printed)
    ok = not CUDA if size is None else size < 5  # small, there are too few steps
    yield Result("images, every stage compiled", f"|g| {size}", ok)


def resumed(folder: Path, data: list[str]) -> Iterator[Result]:
    """A run that is killed goes on from its last checkpoint, to its last step."""
    words = command(
        "train",
        *("modality=image", "preset=smoke", "stage=teacher", f"out={folder / 'killed'}"),
        *(f"max_steps={400 if CUDA else 20}", *data),
    )
    last = folder / "killed" / "teacher" / "last.ckpt"
    killed = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not last.exists() and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    step = torch.load(last, weights_only=True, map_location="cpu", mmap=True)["global_step"]
    printed = output(words)
    final = re.search(r"teacher: (\d+) steps", printed)
    ok = bool(final) and int(final[1]) == (400 if CUDA else 20)
    yield Result("resumed after kill -9", f"from step {step} to {final and final[1]}", ok)


def sharded(folder: Path, data: list[str]) -> Iterator[Result]:
    """FSDP2 with one process: NCCL on a GPU, gloo without one."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m")
    words = [
        "modality=image",
        "preset=smoke",
        "trainer.strategy=fsdp",
        f"out={folder / 'fsdp'}",
        *data,
    ]
    words += [] if CUDA else ["trainer.accelerator=cpu"]
    output(command("train", *words, launcher=launcher))
    yield Result("FSDP2, one process", "teacher and student", True)


def collected(
    name: str,
    work: Callable[[], Iterator[Any]],
    report: Any,
    wait: Callable[[], None] | None = None,
) -> None:
    """Report what `work` yields; at its None, `wait` for the GPU."""
    try:
        for result in work():
            wait() if result is None else report(result)
    except Exception:  # noqa: BLE001  (whatever fails is a line of the report)
        report(Result(name, traceback.format_exc().strip()[-700:], False))


READY, ENDED = "ready", "ended"


def timed(name: str, turn: Any, queue: Any) -> None:
    """In a process of its own: it compiles at once and is timed when its turn comes."""
    held: list[bool] = []

    def wait() -> None:
        queue.put(READY)
        held.append(turn.acquire())

    collected(name, TIMED[name], queue.put, wait)
    if not held:  # it failed before
        queue.put(READY)
    else:
        turn.release()
    queue.put(ENDED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="the folder of Fashion-MNIST, where it is not found")
    parser.add_argument("--out", type=Path, help="also write the results there, as JSON")
    options = parser.parse_args()
    data = [f"data.root={options.data}"] if options.data else []
    results: list[Result] = []

    def report(result: Result) -> None:
        results.append(result)
        mark = {True: "PASS", False: "FAIL", None: "    "}[result.ok]
        print(f"{mark}  {result.name}: {result.figure}", flush=True)

    began = time.perf_counter()
    device = torch.cuda.get_device_name() if CUDA else "no GPU: everything small"
    print(f"{device}, torch {torch.__version__}, {os.cpu_count()} cores, {time.strftime('%F')}")
    context = multiprocessing.get_context("spawn")
    turn, queue = context.Lock(), context.Queue()
    turn.acquire()  # until the commands are through
    processes = [context.Process(target=timed, args=(name, turn, queue)) for name in TIMED]
    for process in processes:
        process.start()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        checks: dict[str, Callable[[], Iterator[Any]]] = {
            **{name: partial(modality, name, place, data) for name in ("image", "audio", "video")},
            "images, every stage compiled": partial(compiled, place, data),
            "resumed after kill -9": partial(resumed, place, data),
            "FSDP2, one process": partial(sharded, place, data),
        }
        threads = [
            threading.Thread(target=collected, args=(name, work, report))
            for name, work in checks.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    collected("tangents", exact, report)
    compiling, running = len(TIMED), len(TIMED)
    while running:
        if isinstance(message := queue.get(timeout=600), Result):
            report(message)
        elif message == READY:
            compiling -= 1
            if not compiling:
                print(f"Timing, after {time.perf_counter() - began:.0f} s", flush=True)
                turn.release()
        else:
            running -= 1
    failed = [result.name for result in results if result.ok is False]
    print(f"{time.perf_counter() - began:.0f} s; {len(failed) or 'nothing'} failed")
    if options.out:
        about = {"device": device, "torch": torch.__version__, "date": time.strftime("%F")}
        content = {**about, "results": [result._asdict() for result in results]}
        options.out.write_text(json.dumps(content, indent=2) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
