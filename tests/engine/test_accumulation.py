"""Several batches a step of the optimiser: the same training as by one large batch."""

import copy
import math

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import nn

from scm_core.contract.objectives import Phase
from scm_core.contract.spec import SIGMA_DATA, Batch
from scm_core.engine.callbacks import Averaging
from scm_core.engine.monitoring import Logging
from scm_core.engine.phases import Phases
from scm_core.engine.previews import Previews, averaged
from scm_core.engine.stages import Stage
from scm_core.method.ema import PowerEMA
from scm_core.method.objectives import Objective
from scm_core.method.objectives.consistency import Consistency
from scm_core.method.objectives.diffusion import Diffusion
from scm_core.method.objectives.discrete_consistency import DiscreteConsistency
from scm_core.method.objectives.distribution_matching import DistributionMatching
from scm_core.method.objectives.flow_anchor import FlowAnchor

D = 3
BOUNDS = torch.tensor(-0.6), torch.tensor(0.6)


class Network(nn.Module):
    """F of a sample, its time and nothing else."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(D + 1, 8), nn.Linear(8, D)

    def forward(self, x, t, condition=None):
        inputs = torch.cat([x, t[:, None]], dim=1)
        return self.second(nn.functional.silu(self.first(inputs)))


class Repeatable(Stage):
    """Whose noise and times depend on a sample alone, and not on the batch that it is in."""

    def noise(self, like):
        return SIGMA_DATA * torch.sin(37 * like) * 2**0.5

    def noised(self, x0, P_mean, P_std):
        t = math.pi / 2 * torch.sigmoid(x0.sum(1) + P_mean / P_std)
        noise = self.noise(x0)
        return self.path.interpolate(x0, noise, t), self.path.velocity(x0, noise, t), t

    def monitor(self, *found):
        super().monitor(*(values.float() for values in found))


class Notes(Callback):
    """Gradients, as the optimiser has used them, and metrics after each step."""

    def __init__(self):
        self.gradients, self.metrics, self.seen = [], [], 0

    def on_train_batch_end(self, trainer, stage, *_):
        if trainer.global_step > self.seen:
            self.seen = trainer.global_step
            self.gradients.append(
                {k: p.grad.clone() for k, p in stage.named_parameters() if p.grad is not None}
            )
            self.metrics.append({k: v.clone() for k, v in stage.metrics.items()})


class Samples(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        return Batch(self.x[indices], {})


def loader(n, batch):
    x = SIGMA_DATA * torch.randn(n, D, generator=torch.Generator().manual_seed(0)).double()
    return torch.utils.data.DataLoader(Samples(x), batch, collate_fn=lambda found: found)


def fit(stage, batches, steps, *callbacks, **options):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, **options},
    )
    trainer.fit(stage, batches)
    return trainer


def built(kinds, lr=1e-3):
    torch.manual_seed(1)
    network = Network()
    options = {DistributionMatching: {"rollouts": [1]}, Consistency: {"tangent_warmup": 2}}
    objectives = {
        kind.__name__: kind(kind.Options(**options.get(kind, {})), copy.deepcopy(network))
        for kind in kinds
    }
    phase = Phase({name: 1.0 + i for i, name in enumerate(objectives)}, 10, lr)
    teacher = copy.deepcopy(network).double()
    return Repeatable(network, [phase], objectives, {}, teacher, bounds=BOUNDS).double()


SUMS = (
    (Diffusion,),
    (Consistency, FlowAnchor),
    (DiscreteConsistency,),
    (DistributionMatching, Consistency),
)


@pytest.mark.parametrize("kinds", SUMS, ids=lambda kinds: kinds[0].__name__)
@pytest.mark.parametrize("clip", [None, 0.1])
def test_four_batches_of_32_are_one_of_128(kinds, clip):
    whole, parts = Notes(), Notes()
    fit(built(kinds), loader(128, 128), 3, whole, gradient_clip_val=clip)
    options = {"accumulate_grad_batches": 4, "gradient_clip_val": clip}
    fit(built(kinds), loader(128, 32), 3, parts, **options)
    assert len(whole.gradients) == len(parts.gradients) == 3
    torch.testing.assert_close(parts.gradients, whole.gradients, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parts.metrics, whole.metrics, rtol=1e-9, atol=1e-12)


def test_clipping_bounds_the_norm_of_a_steps_mean_gradient():
    free, clipped = Notes(), Notes()
    options = {"accumulate_grad_batches": 4}
    fit(built((Diffusion,)), loader(128, 32), 1, free, **options)
    fit(built((Diffusion,)), loader(128, 32), 1, clipped, gradient_clip_val=0.1, **options)
    free, clipped = (
        torch.cat([g.flatten() for g in notes.gradients[0].values()]) for notes in (free, clipped)
    )
    assert free.norm() > 0.1
    torch.testing.assert_close(clipped, free * (0.1 / free.norm()), rtol=1e-5, atol=0)


def test_the_last_step_of_an_epoch_is_the_mean_of_fewer_batches():
    whole, parts = Notes(), Notes()
    batches = loader(160, 32)  # 4 and 1
    fit(built((Diffusion,), lr=1e-30), batches, 2, parts, accumulate_grad_batches=4)
    alone = Samples(batches.dataset.x[128:])
    alone = torch.utils.data.DataLoader(alone, 32, collate_fn=lambda found: found)
    fit(built((Diffusion,), lr=1e-30), alone, 1, whole)
    torch.testing.assert_close(parts.gradients[1], whole.gradients[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parts.metrics[1], whole.metrics[0], rtol=1e-9, atol=1e-12)


class Counted(Objective):
    """Notes the steps that it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def loss(self, student, batch):
        self.told.append((student.step, student.steps))
        loss = student.backbone.first.weight.square().mean().expand(len(batch.x))
        return loss, {"error": loss.detach()}


class Rates(Callback):
    """The learning rate of each step."""

    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self, trainer, stage, optimizer):
        self.found.append(optimizer.param_groups[0]["lr"])


class Listening(Logger):
    name, version = "listening", 0

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_metrics(self, metrics, step=None):
        self.steps.append(step)

    def log_hyperparams(self, *_):
        pass


def test_everything_counts_steps_of_the_optimiser(tmp_path, monkeypatch):
    stage = Repeatable(
        Network().double(),
        [Phase({"a": 1.0}, 3, 0.1, 2), Phase({"b": 1.0}, 4, 0.01)],
        {"a": Counted(), "b": Counted()},
    )
    averaging, rates, logger, drawn = Averaging(0.1), Rates(), Listening(), []
    previews = Previews(2, tmp_path, drawn.append, None)
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda _: False))  # draws, writes none
    trainer = fit(
        stage,
        loader(64, 8),
        7,
        *(averaging, Phases(averaging), rates, Logging(2), previews),
        accumulate_grad_batches=3,
        logger=logger,
    )
    assert trainer.global_step == 7
    # 8 batches an epoch: steps of 3, 3 and 2.
    first, second = (objective.told for objective in stage.named.values())
    assert first == [(step, 3) for step, parts in enumerate((3, 3, 2)) for _ in range(parts)]
    parts = (3, 3, 2, 3)
    assert second == [(step, 4) for step, count in enumerate(parts) for _ in range(count)]
    assert averaging.ema.step == 4
    assert rates.found == pytest.approx([stage.lr_at(step, 7) for step in range(7)])
    assert logger.steps == [2, 4, 6] and len(drawn) == 3
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {4}


def test_a_preview_leaves_every_module_in_its_mode():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    with averaged(network, PowerEMA(network.state_dict(), 0.1)):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, False]
