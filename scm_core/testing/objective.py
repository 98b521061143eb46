"""Checks of an objective: what it returns, its gradients, two steps, and a resumed run."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from scm_core.contract.fields import Label, Schema
from scm_core.contract.objectives import Phase
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.dual.verification import awakened
from scm_core.engine.stages import Stage
from scm_core.method.objectives import Objective
from scm_core.networks import backbones
from scm_core.networks.backbones import BackboneConfig
from scm_core.testing.subject import Fault, Result, seeded

SHAPE, SCHEMA, SAMPLES = (1, 16), {"label": Label(2)}, 8


def results(objective: type[Objective], backbone: nn.Module | None) -> Iterator[Result]:
    """The checks one by one, as they are done."""
    for check in (options, losses, groups, gradients, two_steps, resumed, without_teacher):
        try:
            with seeded(0):
                yield Result(check.__name__.replace("_", " "), True, check(objective, backbone))
        except Fault as fault:
            yield Result(check.__name__.replace("_", " "), False, fault.figure, fault.advice)
        except Exception as error:  # whatever it is, it belongs in the report
            figure = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Result(check.__name__.replace("_", " "), False, figure, "fix it there")


def options(objective: type[Objective], _: nn.Module | None) -> str:
    """The default options survive YAML, as in a run directory."""
    plain = OmegaConf.structured(objective.Options)
    read = OmegaConf.merge(plain, OmegaConf.create(OmegaConf.to_yaml(plain)))
    if OmegaConf.to_object(read) != objective.Options():
        raise Fault("other options come back", "use plain types in the dataclass Options")
    return f"{len(plain)} keys"


def losses(objective: type[Objective], backbone: nn.Module | None) -> str:
    """A loss (N,) and the monitored metric (N,), finite, and the times they belong to."""
    stage = staged(objective, backbone)
    loss, metrics = stage.named["checked"].loss(stage, batch())
    name = objective.monitors
    if name not in metrics:
        raise Fault(f"no metric is called {name}", "`monitors` names one of the metrics of `loss`")
    for key, value in {"loss": loss, name: metrics[name], **metrics}.items():
        alike = value.shape == loss.shape or key not in ("loss", name, "t") and not value.ndim
        if loss.ndim != 1 or not alike:
            raise Fault(f"{key} is {tuple(value.shape)}", "losses and metrics are (N,), N alike")
        if not value.isfinite().all():
            raise Fault(f"{key} is NaN or Inf", "guard divisions, roots and logarithms")
        if key != "loss" and value.requires_grad:
            raise Fault(f"{key} has a graph", "detach metrics: they are kept")
    return f"loss {loss.mean():.3g}, {name} {metrics[name].mean():.3g}"


def groups(objective: type[Objective], backbone: nn.Module | None) -> str:
    """Groups of Adam hold parameters of the objective's own, each once."""
    built = staged(objective, backbone).named["checked"]
    own, grouped = {id(p) for p in built.parameters()}, []
    for group in built.parameter_groups():
        grouped += [id(parameter) for parameter in group["params"]]
        if not group.get("lr"):
            raise Fault("a group has no lr", "give it one, or leave its parameters to the phase's")
    if len({*grouped}) != len(grouped) or not {*grouped} <= own:
        raise Fault("a group holds others' parameters", "group your own parameters, each once")
    return f"{len(own)} parameters of its own, {len(grouped)} in groups"


def gradients(objective: type[Objective], backbone: nn.Module | None) -> str:
    """Every gradient is finite, and some reach the backbone."""
    stage = staged(objective, backbone)
    stage.training_step(batch(), 0).backward()
    found = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
    if strange := [name for name, grad in found.items() if not grad.isfinite().all()]:
        raise Fault(f"the gradient of {strange[0]} is NaN or Inf", "guard divisions and roots")
    reached = [grad for name, grad in found.items() if name.startswith("backbone.")]
    if not any(grad.any() for grad in reached):
        raise Fault("none reaches the backbone", "keep the graph of student.backbone in the loss")
    return f"of {len(found)} parameters"


def two_steps(objective: type[Objective], backbone: nn.Module | None) -> str:
    """Two steps of Adam leave finite weights and a finite loss."""
    stage = staged(objective, backbone)
    optimizer = adam(stage)
    values = [step(stage, optimizer) for _ in range(2)] + [stage.training_step(batch(), 0)]
    weights = [*stage.parameters()]
    if not all(value.isfinite().all() for value in (*values, *weights)):
        raise Fault("NaN or Inf after two steps", "bound the loss, or the gradients in it")
    return f"loss {values[0].item():.3g}, then {values[-1].item():.3g}"


def resumed(objective: type[Objective], backbone: nn.Module | None) -> str:
    """One that takes up another's state goes on as that does."""
    first, second = staged(objective, backbone), staged(objective, backbone)
    optimizers = adam(first), adam(second)
    step(first, optimizers[0])
    second.load_state_dict(first.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    found = []
    for stage, optimizer in zip((first, second), optimizers, strict=True):
        with seeded(1):
            found.append((step(stage, optimizer), stage.state_dict()))
    same = all(torch.equal(value, found[1][1][key]) for key, value in found[0][1].items())
    if not (same and torch.equal(found[0][0], found[1][0])):
        raise Fault("a resumed run differs", "keep all state in parameters and buffers")
    return "a resumed run does the same"


def without_teacher(objective: type[Objective], backbone: nn.Module | None) -> str:
    """It learns from data alone, or says that it needs a teacher."""
    if objective.needs_teacher:
        return "it says that it needs one"
    stage = staged(objective, backbone, teacher=False)
    if not stage.training_step(batch(), 0).isfinite():
        raise Fault("the loss is NaN or Inf", "set needs_teacher = True if it follows one")
    return "it learns from data"


def batch() -> Batch:
    """A few samples of noise."""
    return Batch(SIGMA_DATA * torch.randn(SAMPLES, *SHAPE), {"label": torch.arange(SAMPLES) % 2})


def staged(objective: type[Objective], backbone: nn.Module | None, teacher: bool = True) -> Stage:
    """A small student in training by the objective alone."""
    with seeded(2):
        network = copy.deepcopy(backbone) if backbone else small(SCHEMA)
        built = objective(objective.Options(), teacher=network if teacher else None)
    guide = copy.deepcopy(network) if teacher else None
    phase = Phase({"checked": 1.0}, steps=10, lr=1e-3)
    stage = Stage(network, [phase], {"checked": built}, SCHEMA, guide, 1.5 if teacher else 1.0)
    stage.on_fit_start()
    return stage


def small(schema: Schema) -> nn.Module:
    """A backbone, with random weights where it starts with zeros."""
    config = BackboneConfig("transformer", options={"width": 32, "depth": 1})
    return awakened(backbones.build(config, SHAPE, schema))


def adam(stage: Stage) -> torch.optim.Adam:
    """What trains it, at the highest learning rates."""
    groups = [{**group, "lr": group["lr"] or 1e-3} for group in stage.parameter_groups()]
    return torch.optim.Adam(groups, betas=stage.betas)


def step(stage: Stage, optimizer: torch.optim.Adam) -> Tensor:
    """One step, and its loss."""
    loss = stage.training_step(batch(), 0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
