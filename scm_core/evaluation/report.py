"""What an evaluation shows: tables of its rows, what two steps win, and the plot's points."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from scm_core.base import console
from scm_core.evaluation.evaluator import Row

WIDTH = 160  # characters, where the output is no terminal
ABOUT = ("name", "model", "sampler", "steps", "guidance", "n", "nfe")
DISTANCES = ("FD", "KID", "precision", "recall")  # columns of an extractor
VISIBLE = 0.01  # share of the time from which decoding has a column of its own


def show(rows: list[Row], found: Row, targets: list[Row], probed: Row) -> None:
    """Print the rows in each extractor, the ratios ``found`` beside their ``targets``, and what was
    ``probed`` (see `measuring.probe`)."""
    show_rows(rows, list(found["by_extractor"]))
    _print(_ratios_table(found, targets))
    _print(_extractors_table(found, targets))
    _print(_probes_table(probed["trajectories"], probed["memorisation"]))


def show_rows(rows: list[Row], extractors: list[str]) -> None:
    """Print the rows in each extractor, of which the first is the chooser."""
    chooser, *others = extractors
    _print(_rows_table(rows, chooser, extractors))
    for name in others:
        _print(_distances_table(rows, name))


def _print(table: Table) -> None:
    wide = console.console if console.console.is_terminal else console.Console(width=WIDTH)
    wide.print(table)


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


def _rows_table(rows: list[Row], chooser: str, extractors: Iterable[str]) -> Table:
    """Costs, distances in the chooser, and scores."""
    distances = {key for name in extractors for key in _keys(name)}
    more = [key for key in rows[0] if key not in distances.union(ABOUT)]
    drawn = [row for row in rows if row["model"] != "real"]
    slow = any(row["decoding_seconds"] > VISIBLE * row["seconds_per_sample"] for row in drawn)
    played = any("real_time_factor" in row for row in drawn)
    heads = ["NFE", "ms/sample", *["decoding"] * slow, *["× real time"] * played]
    n = rows[-1]["n"]
    title = f"distances in {chooser} (the chooser) to real training samples, {n} samples a row"
    table = _table(title, (*heads, *DISTANCES, *(key.replace("_", " ") for key in more)))
    decoded = [row for row in rows[1:] if row["model"] == "real"]
    near = [f"{key} {row[key]:.3g}" for row in decoded for key in row if key not in rows[0]]
    if near:
        table.caption = f"real media encoded and decoded: {', '.join(near)}"
    for row in rows:
        costs = [""] * len(heads)
        if row in drawn:
            costs = [f"{row['nfe']:g}", f"{1000 * row['seconds_per_sample']:.2f}"]
            costs += [f"{1000 * row['decoding_seconds']:.2f}"] * slow
            costs += [f"{row['real_time_factor']:.1f}"] if played else []
        scores = [f"{row[key]:.3f}" for key in more]
        table.add_row(row["name"], *costs, *_distances(row, chooser), *scores)
    return table


def _distances_table(rows: list[Row], name: str) -> Table:
    """Distances in an extractor that only reports."""
    table = _table(f"distances in {name} (only reported)", DISTANCES)
    for row in rows:
        table.add_row(row["name"], *_distances(row, name))
    return table


def _ratios_table(found: Row, targets: list[Row]) -> Table:
    """Costs and scores of two steps."""
    table = _table("what two steps win", ("two steps", "target"))
    for label, key in _labels(found).items():
        if found[key] is not None:
            table.add_row(label, f"{found[key]:.3g}", _target(targets, key))
    if found["equal_teacher"] is None:
        table.add_row("no row of the teacher reaches their distance", "", "")
    return table


def _extractors_table(found: Row, targets: list[Row]) -> Table:
    """Two steps against the teacher, more steps against fewer, in each extractor."""
    shown = found["by_extractor"]
    labels = {
        "two_step_distance_over_best_teacher": "FD: two steps over the teacher's best row",
        "two_step_distance_over_one_step": "FD: two steps over one",
        "four_step_distance_over_two_step": "FD: four steps over two",
        "eight_step_distance_over_four_step": "FD: eight steps over four",
        "two_step_recall_minus_best_teacher": "recall: two steps minus the teacher's best row",
    }
    table = _table("by extractor, of which the first is the chooser", shown)
    best = [row["best_teacher"].removeprefix("teacher, ") for row in shown.values()]
    table.add_row("the teacher's best row", *best)
    for key, label in labels.items():
        cells = []
        for name, row in shown.items():
            value = row.get(key)
            target = _target(targets, key, name)
            said = "" if value is None else f"{value:.3g}"
            cells.append(f"{said} ({target})" if target else said)
        if any(cells):
            table.add_row(label, *cells)
    return table


def _probes_table(followed: Row, near: Row) -> Table:
    table = _table(
        f"whether it is a consistency model, and no copy ({followed['n']} samples)", [""]
    )
    figures = {
        "on the teacher's trajectories, rms |f(x_t, t) - x_0|": followed["mean_rms"],
        **{
            f"samples to the teacher's end points, rms, steps: {steps}": rms
            for steps, rms in followed["end_points"].items()
        },
        "the same of a perfect consistency function, steps: 2": followed[
            "two_step_end_point_floor"
        ],
        "samples to its samples by the same noise, steps: 2": followed["two_step_to_perfect"],
        "nearest training media: median distance over that of test media": near["median_over_test"],
        "samples nearer than 99 % of test media, share": near["share_nearer_than_first_percentile"],
    }
    for label, value in figures.items():
        table.add_row(label, f"{value:.3f}")
    return table


def _table(title: str, heads: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title)
    table.add_column("", min_width=20)
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _keys(extractor: str) -> list[str]:
    kinds = ("fd", "kid", "precision", "recall")
    return [f"kid_{extractor}_std", *(f"{kind}_{extractor}" for kind in kinds)]


def _distances(row: Row, extractor: str) -> list[str]:
    spread, fd, kid, precision, recall = (row[key] for key in _keys(extractor))
    return [f"{fd:.4g}", f"{kid:.3g} ± {spread:.2g}", f"{precision:.3f}", f"{recall:.3f}"]


def _target(targets: list[Row], key: str, extractor: str | None = None) -> str:
    """A target of a ratio, and whether it is met."""
    for one in targets:
        if one["ratio"] == key and extractor in (None, one["extractor"]):
            return f"at {one['at']} {one['target']:g}: {'met' if one['met'] else 'missed'}"
    return ""


def _labels(found: Row) -> dict[str, str]:
    """What each ratio says, and its key in ``found``."""
    reference, equal = found["reference"], found["equal_teacher"]
    labels = {
        f"sampling time of the reference ({reference}) over theirs": (
            "reference_sampling_over_two_step_sampling"
        ),
        "time of the reference with decoding over theirs": "reference_time_over_two_step_time",
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
