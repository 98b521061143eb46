"""Does the gap between students and their teachers shrink as networks grow? A table and a plot.

    python benchmarks/sizes.py RUN RUN ... [--out runs/sizes]

Each RUN is a run directory in which `scm_core.evaluate` has left metrics.json, all on the same data
(docs/recipe.md has the loop that makes them).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from scm_core.base.files import write_text
from scm_core.engine import storage
from scm_core.evaluation import plots

STEPS = 1, 2, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", default="runs/sizes", type=Path)
    given = parser.parse_args()
    sizes = sorted((of(run) for run in given.runs), key=lambda size: size["parameters"])
    keys = [key for key in sizes[0] if key.startswith("fd_")]
    lines = []
    for key in keys:
        lines += [f"\n{key}\n", "| parameters, millions | teacher | 1 step | 2 steps | 4 steps |"]
        lines += ["|---:|" + "---:|" * 4]
        for size in sizes:
            best, *student = size[key]
            cells = [f"{d:.4g} ({d / best:.2f})" for d in student]
            facts = [f"{size['parameters'] / 1e6:.2f}", f"{best:.4g}", *cells]
            lines.append(f"| {' | '.join(facts)} |")
        names = ["teacher", *(f"student, {n} step{'s' * (n > 1)}" for n in STEPS)]
        curves = {
            name: [(size["parameters"] / 1e6, size[key][i]) for size in sizes]
            for i, name in enumerate(names)
        }
        path = given.out / f"{key}.png"
        plots.curves_plot(curves, path, ("millions of parameters", key), "Quality by size")
    text = "\n".join(lines) + "\n"
    write_text(given.out / "sizes.md", text)
    print(text)


def of(run: Path) -> dict[str, Any]:
    """Parameters of a run's student, and by distance that of the teacher's best row and the
    student's in 1, 2 and 4 steps."""
    rows = json.loads((run / "metrics.json").read_text())["rows"]
    _, weights = storage.read(run / "student.safetensors")
    network, _ = storage.split(weights)
    found: dict[str, Any] = {"parameters": sum(value.numel() for value in network.values())}
    student = {row["steps"]: row for row in rows if row["model"] == "student"}
    for key in student[2]:
        if key.startswith("fd_"):
            best = min(row[key] for row in rows if row["model"] == "teacher")
            found[key] = [best, *(student[steps][key] for steps in STEPS)]
    return found


if __name__ == "__main__":
    main()
