"""How fast two processes train against one, and what share of the time checkpoints take.

    python benchmarks/processes.py [key=value ...]

Keys are those of training; by default it is the teacher of the images that are shipped. Each
process has one thread and they share the batch. Speeds are medians of what the runs log.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scm_core.contract.config import TrainerConfig

SPEED_BAR, CHECKPOINT_BAR = 0.85, 0.05
STEPS, LOGGED = 60, 10  # the first figure, of a cold start, does not count
WORDS = ["modality=image", "preset=cpu", "stage=teacher", "trainer.accelerator=cpu"]
WORDS += [f"max_steps={STEPS}", f"trainer.log_every={LOGGED}"]
WORDS += [f"trainer.checkpoint_every={STEPS // 2}"]


def logged(words: list[str], processes: int) -> dict[str, float]:
    """Medians of what a run logs of its speed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "scm_core.train"]
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [*command, *WORDS, *words, f"out={out}"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        events = EventAccumulator(f"{out}/logs/teacher")
        events.Reload()
        found = {}
        for name in ("samples per second", "seconds to write a checkpoint"):
            values = [event.value for event in events.Scalars(f"speed/{name}")]
            found[name] = statistics.median(values[1:])
    return found


def main(words: list[str]) -> None:
    """Print both ratios."""
    one, two = logged(words, 1), logged(words, 2)
    single, double = (run["samples per second"] for run in (one, two))
    print(f"{single:.1f} samples a second in one process, {double:.1f} in two (DDP)")
    print(f"two over twice one: {double / single / 2:.2f} (bar {SPEED_BAR})")
    batch = next((w.split("=")[1] for w in words if w.startswith("data.batch_size=")), "128")
    between = TrainerConfig.checkpoint_every * int(batch) / single
    spent = one["seconds to write a checkpoint"]
    print(
        f"a checkpoint takes {spent:.2f} s, every {between:.0f} s: "
        f"{spent / (between + spent):.4f} of the time (bar {CHECKPOINT_BAR})"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
