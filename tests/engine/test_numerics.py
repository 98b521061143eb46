"""bf16 trains as float32 does, and the difference quotient stands in for the exact tangent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from scm_core import dual
from scm_core.contract.fields import Label
from scm_core.networks import backbones

SCHEMA = {"label": Label(3)}


def inputs(shape, dtype):
    torch.manual_seed(0)
    x, dx = torch.randn(2, 2, *shape, dtype=dtype)
    t, dt = torch.tensor([0.3, 1.5], dtype=dtype), torch.tensor([0.28, 0.07], dtype=dtype)
    return (x, t), (dx, dt)


@pytest.fixture(params=["transformer", "unet"])
def network(request):
    torch.manual_seed(1)
    options = {"width": 32, "depth": 2} if request.param == "transformer" else {}
    config = backbones.BackboneConfig(name=request.param, dropout=0.1, options=options)
    network = backbones.build(config, (3, 8, 8), SCHEMA)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network.train()


@pytest.mark.parametrize(
    "dtype, error", [(torch.float32, 2e-3), (torch.float64, 1e-7)], ids=["float32", "float64"]
)
def test_the_difference_is_near_the_exact_tangent(network, dtype, error):
    network, given = network.to(dtype), inputs((3, 8, 8), dtype)
    condition = {"label": torch.tensor([0, 2])}
    torch.manual_seed(2)  # of the dropout
    F, dF = dual.jvp(network, *given, condition=condition)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        same, about = dual.difference(network, *given, condition=condition)
    assert (about - dF).norm() < error * dF.norm()
    assert same.requires_grad and not about.requires_grad
    if dtype == torch.float64:
        torch.testing.assert_close(same, F)


class Stubborn(nn.Module):
    """A network with an operation that Dual refuses."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, t, condition=None):
        return self.inner(x, t, condition).transpose_(-1, -2).transpose_(-1, -2)


def train(*words, ok=True):
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}"}
    command = [sys.executable, "-m", "scm_core.train", "trainer.accelerator=cpu", *words]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == (0 if ok else 2), run.stderr
    return run.stdout + run.stderr


def test_a_network_that_dual_refuses_trains_by_differences(tmp_path):
    words = ["modality=test_numerics:SPEC", "preset=cpu", "max_steps=3", f"out={tmp_path}"]
    words += ["student.phases=[{consistency: 1, steps: 3}]"]
    assert "writes in place" in train(*words, ok=False)
    assert "student: 3 steps" in train(*words, "student.tangent=difference")


def losses(out, stage):
    events = EventAccumulator(str(out / "logs" / stage))
    events.Reload()
    return torch.tensor([event.value for event in events.Scalars("loss")])


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_bf16_trains_as_float32_does(modality, tmp_path):
    for precision in ("32-true", "bf16-mixed"):
        words = [f"modality={modality}", "preset=smoke", f"trainer.precision={precision}"]
        phases = "{endpoint: 1, steps: 15}, {consistency: 1, distribution_matching: 1, steps: 15}"
        words += ["max_steps=30", f"student.phases=[{phases}]"]
        train(*words, f"out={tmp_path}/{precision}")
    for stage in ("teacher", "student"):
        single, half = (losses(tmp_path / name, stage) for name in ("32-true", "bf16-mixed"))
        assert len(single) == len(half) == 30
        assert (single - half).abs().mean() < 0.05 * single.std() + 0.02


def _spec():
    from dataclasses import replace

    import toy_plugin

    def build(config, *about):
        return Stubborn(toy_plugin.SPEC.build_backbone(config, *about))

    return replace(toy_plugin.SPEC, name="test_numerics:SPEC", build_backbone=build)


SPEC = _spec()
