"""Ratios of rows whose figures are known, and the targets beside them."""

import pytest

from scm_core.evaluation.ratios import judged, ratios


def row(model, steps, nfe, sampling, distance, right=0.5, recall=0.5, other=1.0):
    """A row whose decoding takes 0.1 s."""
    name = f"{model} {nfe}"
    found = dict(name=name, model=model, steps=steps, nfe=nfe, right=right)
    found |= dict(fd_a=distance, recall_a=recall, fd_b=other, recall_b=0.4)
    seconds = sampling and dict(sampling_seconds=sampling, seconds_per_sample=sampling + 0.1)
    return found | (seconds or {})


def test_ratios_compare_two_steps_with_the_reference_and_with_the_cheapest_equal():
    rows = [
        row("real", None, None, None, 1.0, right=0.8),
        row("student", 1, 1, 0.1, 9.0, other=3.0),
        row("student", 2, 2, 0.2, 5.0, right=0.6, recall=0.45, other=6.0),
        row("student", 4, 4, 0.4, 4.0, other=9.0),
        row("teacher", 32, 126, 12.6, 4.0, other=2.0),
        row("teacher", 8, 16, 1.6, 5.0, other=7.0),
        row("teacher", 10, 40, 3.0, 3.9, recall=0.6, other=8.0),
        row("teacher", 4, 8, 0.8, 5.1, other=6.5),
    ]
    found = ratios(rows, ["a", "b"], ["right"])
    assert found["reference"] == "teacher 126"
    assert found["reference_sampling_over_two_step_sampling"] == pytest.approx(63)
    assert found["reference_time_over_two_step_time"] == pytest.approx(12.7 / 0.3)
    assert found["best_teacher"] == "teacher 40"
    assert found["two_step_distance_over_best_teacher"] == pytest.approx(5 / 3.9)
    assert found["two_step_distance_over_one_step"] == pytest.approx(5 / 9)
    assert found["four_step_distance_over_two_step"] == pytest.approx(4 / 5)
    assert found["two_step_recall_minus_best_teacher"] == pytest.approx(-0.15)
    assert (found["equal_teacher"], found["equal_teacher_nfe"]) == ("teacher 16", 16)
    assert found["equal_teacher_nfe_over_two_step_nfe"] == pytest.approx(8)
    assert found["equal_teacher_sampling_over_two_step_sampling"] == pytest.approx(8)
    assert found["equal_teacher_time_over_two_step_time"] == pytest.approx(1.7 / 0.3)
    assert found["two_step_right_over_real"] == pytest.approx(0.75)
    other = found["by_extractor"]["b"]
    assert other["best_teacher"] == "teacher 126"
    assert other["two_step_distance_over_best_teacher"] == pytest.approx(3)
    assert other["two_step_distance_over_one_step"] == pytest.approx(2)
    verdicts = judged(
        found,
        {
            "two_step_distance_over_best_teacher": 2,
            "two_step_distance_over_one_step": 1,
            "two_step_right_over_real": 0.8,
            "equal_teacher_nfe": 20,
            "no_such_ratio": 1,
        },
    )
    assert [(one["ratio"], one["extractor"], one["met"]) for one in verdicts] == [
        ("two_step_distance_over_best_teacher", "a", True),
        ("two_step_distance_over_one_step", "a", True),
        ("equal_teacher_nfe", "a", False),
        ("two_step_distance_over_best_teacher", "b", False),
        ("two_step_distance_over_one_step", "b", False),
        ("equal_teacher_nfe", "b", True),
        ("two_step_right_over_real", None, False),
    ]
    rows[2]["fd_a"], rows[0]["right"] = 3.0, 0.0
    found = ratios(rows, ["a", "b"], ["right"])
    assert found["equal_teacher"] is None and found["two_step_right_over_real"] is None
