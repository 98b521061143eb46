"""What the tests share: real images, a seed before each test, and how a command refuses."""

import sys
from pathlib import Path

import pytest
import torch

from scm_core.apps import evaluate, provenance, sample
from scm_core.apps.sharing import hub, pack
from scm_core.base import console
from scm_core.engine import run

MODULES = {"train": run, "sample": sample, "evaluate": evaluate, "provenance": provenance}
MODULES |= {"hub": hub, "pack": pack}


LONG = ("project", "engine", "apps", "modalities")  # folders whose files take minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fashion_root() -> str:
    """400 training and 200 test images of Fashion-MNIST, for data.root."""
    return str(Path(__file__).parent / "assets" / "fashion-mnist")


@pytest.fixture
def mark(tmp_path) -> Path:
    """What a payload would write; it must not be there in the end."""
    yield tmp_path / "payload-ran"
    assert not (tmp_path / "payload-ran").exists()


@pytest.fixture
def refused(monkeypatch, capfd):
    """Run a command line that has to end in one sentence and exit code 2; the sentence."""

    def refused(command: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [command, *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            console.run(MODULES[command].main, "")
        said = capfd.readouterr().err
        assert caught.value.code == 2 and "Traceback" not in said, said
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said
        return errors[0]

    return refused
