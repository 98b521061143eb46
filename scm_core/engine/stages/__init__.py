"""The stages of a training: an autoencoder, the teacher, then the student."""

from __future__ import annotations

from typing import Any

from torch import nn

from scm_core.contract import objectives
from scm_core.contract.fields import Schema
from scm_core.contract.objectives import Phase
from scm_core.engine.stages.stage import TANGENTS, Stage
from scm_core.method.objectives.diffusion import Diffusion
from scm_core.method.objectives.reconstruction import Reconstruction
from scm_core.method.trigflow import Bounds

__all__ = ["Stage", "autoencoding", "student", "teacher"]


def autoencoding(autoencoder: nn.Module, config: Any) -> Stage:
    """The stage before the teacher, of modalities whose samples are latents."""
    phase = Phase({"reconstruction": 1.0}, config.max_steps, config.lr, config.lr_warmup)
    return Stage(autoencoder, [phase], {"reconstruction": Reconstruction()})


def teacher(backbone: nn.Module, schema: Schema, config: Any) -> Stage:
    """A TrigFlow diffusion model; `config` is the section `teacher`."""
    phase = Phase({"diffusion": 1.0}, config.max_steps, config.lr, config.lr_warmup)
    options = Diffusion.Options(config.condition_dropout, config.P_mean, config.P_std)
    return Stage(backbone, [phase], {"diffusion": Diffusion(options)}, schema)


def student(
    backbone: nn.Module,
    schema: Schema,
    config: Any,
    network: nn.Module | None = None,
    bounds: Bounds | None = None,
) -> Stage:
    """What learns where the probability-flow ODE ends, in the phases of the section `student`.

    With a teacher's `network` the ODE is the teacher's, guided; without, it is estimated from the
    data. `bounds`, which broadcast to a sample, are what decoding clips to: what lies beyond them
    is as good as they are.
    """
    phases = objectives.phases(config)
    found = {
        name: objectives.get(name)(
            objectives.options(name, config.options.get(name, {})), teacher=network
        )
        for name in {name: None for phase in phases for name in phase.weights}
    }
    jvp = TANGENTS[config.tangent]
    given = network, config.guidance, bounds, jvp, config.optimizer, config.last_time
    return Stage(backbone, phases, found, schema, *given)
