"""A backbone that `Dual` refuses, in training."""

from dataclasses import replace

import pytest
import toy_plugin
from torch import nn

from scm_core.base.errors import UserError
from scm_core.engine import run


class Random(nn.Module):
    """A toy backbone whose last operation has no right tangent."""

    def __init__(self, *of_data):
        super().__init__()
        self.inner = toy_plugin.SPEC.build_backbone(*of_data)

    def forward(self, x, t, condition):
        return self.inner(x, t, condition).normal_()


def test_a_student_says_in_one_line_what_its_backbone_may_not_do(tmp_path, monkeypatch):
    spec = replace(toy_plugin.SPEC, build_backbone=Random)
    monkeypatch.setattr(toy_plugin, "BROKEN", spec, raising=False)
    words = ["modality=toy_plugin:BROKEN", "preset=cpu", "max_steps=1", f"out={tmp_path}/run"]
    with pytest.raises(UserError, match="^normal_ writes in place.*out-of-place form"):
        run.main([*words, "trainer.accelerator=cpu"])
