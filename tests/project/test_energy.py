"""The counters of energy that the benchmarks read."""

import pytest
from energy import of_processors


def zone(folder, name, limit=1_000_000):
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text("999000\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder / "energy_uj"


def test_joules_go_on_where_a_counter_starts_again(tmp_path):
    """Of two packages, one passes its limit; cores and psys would count the same twice."""
    first = zone(tmp_path / "intel-rapl:0", "package-0")
    second = zone(tmp_path / "intel-rapl:1", "package-1", 2_000_000)
    others = [zone(tmp_path / "intel-rapl:0:0", "core"), zone(tmp_path / "intel-rapl:2", "psys")]

    def work():
        first.write_text("499000\n")
        for counter in (second, *others):
            counter.write_text("1249000\n")

    assert of_processors(tmp_path).joules(work, duration=0) == pytest.approx(0.5 + 0.25)


def test_no_joules_where_nothing_counts(tmp_path):
    assert of_processors(tmp_path / "absent") is None
    assert of_processors(tmp_path) is None
    zone(tmp_path / "intel-rapl:0", "package-0")
    assert of_processors(tmp_path).joules(lambda: None, duration=0) is None
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # as one that root alone may read
    assert of_processors(tmp_path) is None
