"""Plots of what was measured, as PNG files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scm_core.data.media import write_file

COLOURS = ("#3366aa", "#dd7722", "#228855", "#aa3355", "#7755aa", "#777777")
DASHES = "-", "--", ":"  # of the lines that share a colour


def quality_time_plot(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Plot distance against seconds per sample into a PNG and return its path.

    A row is {name, seconds_per_sample, distance, nfe}; rows of one name are one line, and each
    point carries its NFE. Time is logarithmic, and so is distance when it spans a decade.
    """
    figure, axes = _axes(
        "seconds per sample", "distance to real data", "Quality against time (lower left is better)"
    )
    names = list(dict.fromkeys(row["name"] for row in rows))
    for name, colour in zip(names, COLOURS * len(names), strict=False):
        points = sorted(
            (row["seconds_per_sample"], row["distance"], row["nfe"])
            for row in rows
            if row["name"] == name
        )
        axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color=colour, label=name)
        for seconds, distance, nfe in points:
            axes.annotate(
                f"{nfe:g}", (seconds, distance), (5, 5), textcoords="offset points", color=colour
            )
    axes.margins(0.12)
    _log_scale(axes, "x")
    _log_over_a_decade(axes, [row["distance"] for row in rows])
    if rows:
        axes.legend(frameon=False, title="number = NFE")
    return write_file(path, lambda file: figure.savefig(file, format="png"))


def trajectory_plot(followed: Mapping[str, Any], path: str | Path) -> Path:
    """Plot how far a student is from the ends of its teacher's trajectories, by t, into a PNG.

    ``followed`` is what `trajectories.followed` gives.
    """
    figure, axes = _axes(
        "t", "rms |f(x_t, t) - x_0|, in std of the data", "On the teacher's own trajectories"
    )
    points = [(one["t"], one["rms"]) for one in followed["along"]]
    axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[0], label="at t")
    for (steps, rms), colour in zip(followed["end_points"].items(), COLOURS[1:], strict=False):
        axes.axhline(rms, color=colour, linewidth=1, label=f"sample of {steps} steps")
    floor = followed["two_step_end_point_floor"]
    axes.axhline(floor, color=COLOURS[-1], linestyle=":", label="2 steps, perfect")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return write_file(path, lambda file: figure.savefig(file, format="png"))


def guidance_plot(
    rows: Sequence[Mapping[str, Any]], extractors: Sequence[str], scores: Sequence[str], path: Path
) -> Path:
    """Plot a teacher's distances and scores by its guidance into a PNG and return its path.

    Rows are those of an evaluation. A distance is shown over its least one, a score over that of
    the real test set, the first row.
    """
    figure, axes = _axes("guidance", "over the least; scores over real ones", "Teacher by guidance")
    real, *drawn = rows
    drawn = sorted((row for row in drawn if "guidance" in row), key=lambda row: row["guidance"])
    of_unit = {f"fd_{name}": min(row[f"fd_{name}"] for row in drawn) for name in extractors}
    of_unit |= {name: real[name] for name in scores if real[name]}
    for (key, unit), colour in zip(of_unit.items(), COLOURS * len(of_unit), strict=False):
        points = [(row["guidance"], row[key] / (unit or 1)) for row in drawn]
        dashes = "--" if key in scores else "-"
        label = key.replace("fd_", "FD, ").replace("_", " ")
        axes.plot(*zip(*points, strict=True), f"o{dashes}", color=colour, label=label)
    axes.legend(frameon=False)
    return write_file(path, lambda file: figure.savefig(file, format="png"))


def curves_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: str | Path,
    labels: tuple[str, str],
    title: str,
) -> Path:
    """Plot named curves of (x, y) into a PNG and return its path.

    Y is logarithmic when it spans a decade; ``labels`` are those of the two axes.
    """
    figure, axes = _axes(*labels, title)
    looks = itertools.product(DASHES, COLOURS)
    for (name, points), (dash, colour) in zip(curves.items(), itertools.cycle(looks), strict=False):
        axes.plot(*zip(*points, strict=True), dash, color=colour, label=name)
    _log_over_a_decade(axes, [y for points in curves.values() for _, y in points])
    beside = {"fontsize": "small", "loc": "upper left", "bbox_to_anchor": (1, 1)}
    axes.legend(frameon=False, **(beside if len(curves) > len(COLOURS) else {}))
    return write_file(path, lambda file: figure.savefig(file, format="png"))


def _axes(xlabel: str, ylabel: str, title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second: only to plot
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left", fontsize=12)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _log_over_a_decade(axes: Any, values: Sequence[float]) -> None:
    if values and max(values) > 10 * min(values) > 0:
        _log_scale(axes, "y")


def _log_scale(axes: Any, name: str) -> None:
    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_formatter(_log_tick)
    axis.set_minor_formatter(_log_tick)


def _log_tick(value: float, _: int) -> str:
    """Plain figures at 1, 2 and 5 of every decade."""
    return f"{value:g}" if f"{value:e}"[0] in "125" else ""
