"""The shipped checkpoints: small, described by their own figures, and working."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from scm_core.apps.opening import open_checkpoint
from scm_core.contract import spec
from scm_core.data import media
from scm_core.engine import sampling

SHIPPED = sorted((Path(__file__).parents[2] / "checkpoints").iterdir())


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_the_figures_are_those_of_the_weights(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    for stage in ("teacher", "student"):
        weights = (folder / f"{stage}.safetensors").read_bytes()
        assert len(weights) < 12_000_000
        assert metrics[stage]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert metrics["n"] >= spec.get(folder.name).evaluation_samples.get("cpu", 5000)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_two_steps_by_the_modality_alone(folder, tmp_path):
    """The shipped student draws samples of the data's scale, and its decoder shows them."""
    model = open_checkpoint(None, folder.name)
    condition = sampling.cycled_condition(model.condition, 40)
    x = sampling.sample_all(
        model, sampling.make_sampler(model), condition, 40, seed=0, batch_size=40
    )
    assert x.shape == (40, *model.shape) and x.isfinite().all()
    assert 0.8 * model.sigma_data < x.std() < 1.2 * model.sigma_data
    picture = model.codec.preview(model.codec.decode(x))
    assert picture.dtype == torch.uint8
    assert media.write_png(picture, tmp_path / "overview.png").stat().st_size > 1000
