"""What the tests share: a few hundred real images, and torch seeded before each test."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fashion_root() -> str:
    """400 training and 200 test images of Fashion-MNIST, for data.root."""
    return str(Path(__file__).parent / "data" / "fashion-mnist")
