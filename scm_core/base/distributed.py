"""Several processes: who they are and how they share a batch.

Processes share one batch and its noise: rank r of w has rows r, r + w, ... of what one process
would have drawn. So their number changes neither the samples nor the noise that a step learns from.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpus() -> int:
    """How many processors this process may use: its affinity mask, and what its cgroups allow."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min([allowed, *quotas()])))


def quotas() -> Iterator[float]:
    """The processors that each cgroup around this process may keep busy, of version 1 or 2."""
    with contextlib.suppress(OSError, ValueError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = CGROUPS / "cpu" if controllers else CGROUPS
            # In a container the path may be the host's, and its root the container's own.
            for group in (root / own.strip("/"), *(root / own.strip("/")).parents):
                if group.is_relative_to(root) and (quota := _quota(group)):
                    yield quota


def _quota(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        if (group / "cpu.max").exists():
            used, period = (group / "cpu.max").read_text().split()
        else:
            used, period = (
                (group / f"cpu.cfs_{key}_us").read_text() for key in ("quota", "period")
            )
        return int(used) / int(period) if int(used) > 0 else None
    return None  # none is set, "max" or -1


def limit_threads() -> None:
    """Let torch compute with no more threads than `cpus`, unless OMP_NUM_THREADS says how many.

    Left alone it takes one for each processor of the machine, which wait for each other where a
    container may use a few.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), cpus()))


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that is."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def world() -> tuple[int, int]:
    """How many processes work together, and which of them this is."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within it, the processes that torchrun started work together without a Trainer."""
    together = "TORCHELASTIC_RUN_ID" in os.environ
    if together:
        distributed.init_process_group("gloo")
    try:
        yield
    finally:
        if together:
            distributed.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process; if it is one of several, without taking Python down.

    Threads of gloo are there until the end, and one that frees a tensor when the interpreter is
    gone aborts the process: a job would have failed that has done all it should.
    """
    if world()[0] > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def devices(asked: str) -> dict[str, int | str]:
    """The Trainer's `devices` and `num_nodes`: what torchrun or SLURM has settled, or as asked."""
    nodes = int(os.environ.get("SLURM_NNODES", 1))
    if asked == "auto" and "TORCHELASTIC_RUN_ID" in os.environ:
        here, all_of_them = (int(os.environ[key]) for key in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        asked, nodes = str(here), all_of_them // here
    return {"devices": int(asked) if asked.lstrip("-").isdigit() else asked, "num_nodes": nodes}


def shared(draw: Callable[[int], Tensor], n: int) -> Tensor:
    """This process's `n` rows of what `draw(number of rows)` gives for all of them.

    They all start from one seed, so each draws the same and keeps its own.
    """
    size, rank = world()
    return draw(n * size)[rank::size]


def randn_like(x: Tensor) -> Tensor:
    """Noise like x (B, ...), whose rows are this process's share."""
    return shared(lambda n: torch.randn(n, *x.shape[1:], dtype=x.dtype, device=x.device), len(x))


def all_gather(value: T) -> list[T]:
    """The values of all processes, in their order; small things only."""
    size, _ = world()
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    distributed.all_gather_object(values, value)
    return values


def round_robin(parts: Iterable[T]) -> list[T]:
    """Of parts that processes take round-robin, this one's."""
    size, rank = world()
    return list(parts)[rank::size]


def interleaved(mine: list[T]) -> list[T]:
    """What all processes made of their `round_robin` share, in the order of the parts."""
    shares = all_gather(mine)
    return [share[i] for i in range(len(shares[0])) for share in shares if i < len(share)]
