"""The floors of the core, as pyproject.toml names them: imports point down."""

import logging.config
import sys
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

HERE = Path(__file__).parents[2]


def test_imports_point_down(capsys, monkeypatch):
    # The linter sets logging up anew, which would silence every logger of the tests after this.
    monkeypatch.setattr(logging.config, "dictConfig", lambda _: None)
    assert lint_imports(str(HERE / "pyproject.toml"), no_cache=True) == 0, capsys.readouterr().out


@pytest.mark.parametrize("floor", ["dual", "method"])
def test_the_method_imports_torch_alone(floor):
    graph = grimp.build_graph("scm_core", include_external_packages=True, cache_dir=None)
    floor = f"scm_core.{floor}"
    modules = graph.find_descendants(floor) | {floor}
    imported = set().union(*map(graph.find_modules_directly_imported_by, modules))
    packages = {name for name in imported if not name.startswith("scm_core.")}
    assert packages - sys.stdlib_module_names <= {"torch", "triton"}  # which comes with torch
