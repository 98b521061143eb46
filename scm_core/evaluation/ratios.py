"""What two steps win, from finished rows, in each extractor; and which targets that meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scm_core.evaluation.evaluator import Row

STEPS = {1: "one", 2: "two", 4: "four", 8: "eight"}  # of a student, as the keys of ratios say them


def ratios(rows: list[Row], extractors: Sequence[str], scores: Sequence[str] = ()) -> Row:
    """What two steps win; the first of the ``extractors`` is the chooser, see `compared`.

    The reference is the teacher's row with the most evaluations. Times include the decoding,
    "sampling" times do not. Each of ``scores`` is divided by that of the first row of real media:
    None where that is 0. ``by_extractor`` holds `compared` in every extractor.
    """
    real = next(row for row in rows if row["model"] == "real")
    two = _student(rows)[2]
    reference = max(_teacher(rows), key=lambda row: row["nfe"])
    found = {name: compared(rows, name) for name in extractors}
    return {
        "reference": reference["name"],
        "reference_sampling_over_two_step_sampling": _over(reference, two, "sampling_seconds"),
        "reference_time_over_two_step_time": _over(reference, two, "seconds_per_sample"),
        **found[extractors[0]],
        **{
            f"two_step_{key}_over_real": two[key] / real[key] if real[key] else None
            for key in scores
        },
        "by_extractor": found,
    }


def compared(rows: list[Row], extractor: str) -> Row:
    """Two steps beside the teacher, and more steps beside fewer, in the features of an extractor.

    The teacher's best row is that of the least Fréchet distance in these features; its recall is
    the teacher's. Beside it stand the fewest evaluations by which any row of the teacher reaches
    the two-step distance: None if none does.
    """
    distance, recall = f"fd_{extractor}", f"recall_{extractor}"
    student = _student(rows)
    two, teacher = student[2], _teacher(rows)
    best = min(teacher, key=lambda row: row[distance])
    equal = [row for row in teacher if row[distance] <= two[distance]]
    fewest = min(equal, key=lambda row: (row["nfe"], row["seconds_per_sample"]), default=None)
    return {
        "best_teacher": best["name"],
        "two_step_distance_over_best_teacher": _over(two, best, distance),
        **{
            f"{STEPS[more]}_step_distance_over_{STEPS[fewer]}_step": _over(
                student[more], student[fewer], distance
            )
            for fewer, more in ((1, 2), (2, 4), (4, 8))
            if fewer in student and more in student
        },
        "two_step_recall_minus_best_teacher": two[recall] - best[recall],
        "equal_teacher": fewest and fewest["name"],
        "equal_teacher_nfe": fewest and fewest["nfe"],
        "equal_teacher_nfe_over_two_step_nfe": _over(fewest, two, "nfe"),
        "equal_teacher_sampling_over_two_step_sampling": _over(fewest, two, "sampling_seconds"),
        "equal_teacher_time_over_two_step_time": _over(fewest, two, "seconds_per_sample"),
    }


def judged(found: Row, targets: Mapping[str, float]) -> list[Row]:
    """Each target beside what was found: {ratio, extractor, value, target, at, met}.

    A target of a ratio of distances is the most that it may be, any other the least. One of a ratio
    in `compared` holds in every extractor, one whose name starts with ``reported_`` in all but the
    chooser, where both exist. Ratios that could not be found are left out.
    """
    verdicts = []
    chooser = next(iter(found["by_extractor"]))
    for name, ratio in found["by_extractor"].items():
        for key, value in ratio.items():
            target = targets.get(key)
            if name != chooser:
                target = targets.get(f"reported_{key}", target)
            verdicts.append((key, name, value, target))
    shared = found["by_extractor"][chooser]
    verdicts += [(k, None, v, targets.get(k)) for k, v in found.items() if k not in shared]
    return [
        {
            "ratio": key,
            "extractor": name,
            "value": value,
            "target": target,
            "at": "most" if "distance" in key else "least",
            "met": value <= target if "distance" in key else value >= target,
        }
        for key, name, value, target in verdicts
        if target is not None and value is not None
    ]


def _student(rows: list[Row]) -> dict[int, Row]:
    return {row["steps"]: row for row in rows if row["model"] == "student"}


def _teacher(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["model"] == "teacher"]


def _over(a: Row | None, b: Row, key: str) -> float | None:
    """The ratio of two rows; None without the first, or where the second is 0."""
    return a[key] / b[key] if a and b[key] else None
