"""The table and the curves of `objectives`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from judging import STEPS, Row

BUDGETS = {"time": "seconds of training", "samples": "samples"}


def of(done: Mapping[str, Any], name: str, budget: str) -> list[list[Row]]:
    """The points of a variant's runs, one list per seed."""
    return [run["points"] for key, run in done.items() if key.startswith(f"{name}/{budget}/")]


def mean(runs: list[list[Row]], key: str, point: int = -1) -> float:
    return statistics.mean(points[point][key] for points in runs)


def curves(
    done: Mapping[str, Any], titles: Mapping[str, str], budget: str, key: str, batch: int
) -> dict[str, list[tuple[float, float]]]:
    """A figure over seconds or samples, by the variants' titles: means over seeds."""
    found = {}
    for name, title in titles.items():
        if runs := of(done, name, budget):
            x, scale = ("seconds", 1) if budget == "time" else ("step", batch)
            places = range(min(map(len, runs)))
            found[title] = [(scale * mean(runs, x, i), mean(runs, key, i)) for i in places]
    return found


def table(found: Mapping[str, Any], titles: Mapping[str, str], names: list[str]) -> str:
    """A Markdown table per budget: means over seeds, with the standard deviation where there are
    several. Precision and recall are those of the first of the extractors `names`."""
    about, done, lines = found["about"], found["runs"], []
    batch = about["batch"] * about["accumulate"]
    heads = ["", "seconds", "steps", "samples", *(f"FD {name}, 1 / 2 / 4 steps" for name in names)]
    heads += ["precision", "recall", "class", "\\|g\\|", "to the teacher's ends"]
    teacher = {f"{key} 2": value for key, value in found["teacher"].items()}
    for budget in BUDGETS:
        if not any(of(done, name, budget) for name in titles):
            continue
        lines += [f"\nEqual {budget}: batches of {batch}, {about['n']:,} samples per row\n"]
        lines += [f"| {' | '.join(heads)} |", f"|---{'|---:' * (len(heads) - 1)}|"]
        lines.append(row("teacher", ["", "", ""], names, lambda key: figure([teacher], key)))
        for name, title in titles.items():
            if runs := of(done, name, budget):
                last = [points[-1] for points in runs]
                steps = mean(runs, "step")
                facts = [f"{mean(runs, 'seconds'):.0f}", f"{steps:.0f}", f"{steps * batch:,.0f}"]
                lines.append(row(title, facts, names, lambda key, last=last: figure(last, key)))
    return "\n".join(lines) + "\n"


def row(title: str, facts: list[str], names: list[str], cell: Callable[[str], str]) -> str:
    """A line of the table, by the figure that each key has; those after the distances are of two
    steps."""
    distances = [" / ".join(filter(None, (cell(f"fd_{n} {k}") for k in STEPS))) for n in names]
    keys = [f"precision_{names[0]} 2", f"recall_{names[0]} 2", "class_accuracy 2", "|g|", "error"]
    return f"| {' | '.join([title, *facts, *distances, *map(cell, keys)])} |"


def figure(rows: list[Row], key: str) -> str:
    """Mean and spread of a key, or nothing where rows have none."""
    values = [row[key] for row in rows if key in row]
    if not values:
        return ""
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return (f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}") + spread
