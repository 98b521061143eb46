"""The energy that work takes, by the counters of a GPU (NVML) or of the processors (RAPL)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

DURATION = 2.0  # seconds of work at least: counters move in steps of up to a tenth of one


@dataclass(frozen=True)
class Counters:
    """Counters in steps of `unit` joules, of all that runs; each restarts behind its own limit."""

    name: str
    read: Callable[[], list[int]]
    limits: list[int]
    unit: float

    def joules(self, work: Callable[[], object], duration: float = DURATION) -> float | None:
        """Of `work` that waits for the device, repeated; None where the counters stand still."""
        times, before, started = 0, self.read(), time.perf_counter()
        while not times or time.perf_counter() - started < duration:
            work()
            times += 1
        moved = zip(before, self.read(), self.limits, strict=True)
        return self.unit * sum((b - a) % limit for a, b, limit in moved) / times or None


def of_gpu(device: torch.device) -> Counters | None:
    """NVML's, which need Volta or later and the package nvidia-ml-py; None where there are none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        # Not by number: NVML counts devices that CUDA_VISIBLE_DEVICES hides.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        read(handle)
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
    return Counters("the GPU, by NVML", lambda: [read(handle)], [2**64], 1e-3)


def of_processors(root: Path = Path("/sys/class/powercap")) -> Counters | None:
    """RAPL's of packages and their memory, which many kernels let root alone read; else None."""

    def read(name: str = "energy_uj") -> list[int]:
        return [int((zone / name).read_text()) for zone in zones]

    # Cores are part of their package, and a zone psys would count the packages again.
    named = [(zone, (zone / "name").read_text()) for zone in sorted(root.glob("intel-rapl:*"))]
    zones = [zone for zone, name in named if name.startswith(("package", "dram"))]
    try:
        read()
    except OSError:
        return None
    limits = read("max_energy_range_uj")
    return Counters("processors and memory, by RAPL", read, limits, 1e-6) if zones else None
