"""What an evaluation shows: a table of its rows, what two steps win, and the plot's points."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from scm_core.base import console
from scm_core.evaluation.evaluator import Row

WIDTH = 160  # characters, where the output is no terminal
ABOUT = ("name", "model", "sampler", "steps", "guidance", "n", "nfe")
VISIBLE = 0.01  # share of the time from which decoding has a column of its own


def show(rows: list[Row], found: Row, extractor: str, targets: Mapping[str, float]) -> None:
    """Print the rows as one table, and the ratios ``found`` beside their targets as another."""
    wide = console.console if console.console.is_terminal else console.Console(width=WIDTH)
    wide.print(_rows_table(rows, extractor))
    wide.print(_ratios_table(found, targets))


def points(rows: list[Row], distance: str) -> list[Row]:
    """The rows that took time as points of the plot: one line per model, sampler and guidance."""
    found = []
    for row in rows:
        if row["model"] == "real":
            continue
        line = f"teacher, {row['sampler']}, guidance {row['guidance']:g}"
        found.append(
            {
                "name": "student" if row["model"] == "student" else line,
                "seconds_per_sample": row["seconds_per_sample"],
                "distance": row[distance],
                "nfe": round(row["nfe"]),
            }
        )
    return found


def _rows_table(rows: list[Row], extractor: str) -> Table:
    shared = (f"fd_{extractor}", f"kid_{extractor}", f"kid_{extractor}_std")
    more = [key for key in rows[0] if key not in (*ABOUT, *shared)]
    drawn = [row for row in rows if row["model"] != "real"]
    slow = any(row["decoding_seconds"] > VISIBLE * row["seconds_per_sample"] for row in drawn)
    played = any("real_time_factor" in row for row in drawn)
    heads = ["NFE", "ms/sample", *["decoding"] * slow, *["× real time"] * played, "FD", "KID"]
    title = f"distances in {extractor} to real training samples, {rows[-1]['n']} samples a row"
    table = Table(box=box.SIMPLE_HEAD, title=title)
    table.add_column("", min_width=20)
    for head in (*heads, *(key.replace("_", " ") for key in more)):
        table.add_column(head, justify="right")
    decoded = [row for row in rows[1:] if row["model"] == "real"]
    near = [f"{key} {row[key]:.3g}" for row in decoded for key in row if key not in rows[0]]
    if near:
        table.caption = f"real media encoded and decoded: {', '.join(near)}"
    for row in rows:
        costs = [""] * (len(heads) - 2)
        if row in drawn:
            costs = [f"{row['nfe']:g}", f"{1000 * row['seconds_per_sample']:.2f}"]
            costs += [f"{1000 * row['decoding_seconds']:.2f}"] * slow
            costs += [f"{row['real_time_factor']:.1f}"] if played else []
        fd, kid, spread = (row[key] for key in shared)
        scores = [f"{row[key]:.3f}" for key in more]
        table.add_row(row["name"], *costs, f"{fd:.4g}", f"{kid:.3f} ± {spread:.3f}", *scores)
    return table


def _ratios_table(found: Row, targets: Mapping[str, float]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="what two steps win")
    table.add_column("")
    for head in ("two steps", "bar"):
        table.add_column(head, justify="right", no_wrap=True)
    for label, key in _labels(found).items():
        if found[key] is not None:
            side = "at most" if "distance" in key else "at least"
            bar = f"{side} {targets[key]:g}" if key in targets else ""
            table.add_row(label, f"{found[key]:.3g}", bar)
    if found["equal_teacher"] is None:
        table.add_row("no row of the teacher reaches their distance", "", "")
    return table


def _labels(found: Row) -> dict[str, str]:
    """What each ratio says, and its key in ``found``."""
    reference, best, equal = (found[k] for k in ("reference", "best_teacher", "equal_teacher"))
    labels = {
        f"sampling time of the reference ({reference}) over theirs": (
            "reference_sampling_over_two_step_sampling"
        ),
        "time of the reference with decoding over theirs": "reference_time_over_two_step_time",
        f"their distance over that of the teacher's best row ({best})": (
            "two_step_distance_over_best_teacher"
        ),
        f"fewest evaluations by which the teacher reaches their distance ({equal})": (
            "equal_teacher_nfe"
        ),
        "evaluations of that row over theirs": "equal_teacher_nfe_over_two_step_nfe",
        "sampling time of that row over theirs": "equal_teacher_sampling_over_two_step_sampling",
        "time of that row with decoding over theirs": "equal_teacher_time_over_two_step_time",
    }
    scores = {
        key.removeprefix("two_step_").removesuffix("_over_real"): key
        for key in found
        if key.endswith("_over_real")
    }
    for name, key in scores.items():
        labels[f"their {name.replace('_', ' ')} over that of the real test set"] = key
    return labels
