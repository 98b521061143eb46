"""One run directory: configuration, checkpoints, exported weights, logs and previews."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from scm_core.base import console
from scm_core.base.claim import agreed
from scm_core.base.errors import UserError
from scm_core.base.files import Lock, check_room, fingerprint, write_text
from scm_core.contract import objectives
from scm_core.contract.fields import Schema, schema_to_dict, with_examples
from scm_core.contract.spec import Autoencoder, Codec, DataModule, ModalitySpec
from scm_core.data.batches import spread
from scm_core.data.latents import LatentCodec, Latents, latent_shape
from scm_core.dual import DualError
from scm_core.engine import checkpoint, config, directory, pretrained, sampling, sharding, storage
from scm_core.engine.callbacks import Averaging, Interrupt, Seeding
from scm_core.engine.checkpointing import (
    LAST,
    Checkpointing,
    DivergenceGuard,
    WholeCheckpoints,
    resumable,
)
from scm_core.engine.compilation import compiled
from scm_core.engine.feeding import Fed
from scm_core.engine.monitoring import Logging, ProgressBar, Speed
from scm_core.engine.phases import Phases
from scm_core.engine.previews import Previews, reconstructions, samples
from scm_core.engine.refusals import (
    STAGES,
    check,
    check_methods,
    duration,
    trained,
    trainer_of,
)
from scm_core.engine.snapshots import WIDTHS, Snapshots
from scm_core.engine.stages import Stage, autoencoding, student, teacher
from scm_core.networks import lora

EXAMPLES, NUMBERS = 16, 1 << 16  # held-out conditions in a checkpoint, and numbers in all of them


def main(arguments: list[str]) -> None:
    """Run the stages that the configuration asks for, in the run directory `out`."""
    spec, settings = config.load(arguments)
    check(settings)
    objectives.state(settings.student)
    check_room(Path(settings.out))
    with Lock(Path(settings.out)) as lock:
        run = Run(spec, settings, lock)
        for stage in run.stages:
            run.train(stage)


class Run:
    """One run directory: configuration, checkpoints, exported weights, logs and previews."""

    def __init__(self, spec: ModalitySpec, settings: DictConfig, lock: Lock) -> None:
        self.spec, self.settings = spec, settings
        self.folder, self.lock = lock.folder, lock
        if self.folder.exists():  # a new one is not made before all is known to fit
            self._hold()
        directory.check(self.folder, settings)
        self.seed = sampling.fold(settings.seed)
        seed_everything(self.seed, verbose=False)
        self.data: DataModule = spec.data(settings)
        self.data.setup()
        about = self._agree()
        self.statistics = about["statistics"]
        self.codec: Codec = spec.codec(settings, self.statistics)
        self.autoencoder = self._autoencoder()
        self.pretrained = bool(self.autoencoder and self.autoencoder.pretrained)
        self.teacher: str | None = settings.get("pretrained")  # that somebody else has trained
        self.distils = settings.student.method == "distill"
        self.stages = self._stages()
        if not (self.folder / "config.yaml").exists():
            self._check_fit()
        self._hold()
        self._write("data.json", json.dumps(about))

    def train(self, name: str) -> None:
        """Train one stage, or resume it, and export its EMA weights; skip it when done."""
        settings = self.settings[name]
        steps = self.settings.max_steps or settings.max_steps
        if steps is None:
            steps = sum(phase.steps for phase in objectives.phases(settings))
        exported = self.folder / f"{name}.safetensors"
        if self._is_done(name, exported, steps):
            return
        if self.autoencoder and name != "decoder" and not isinstance(self.data, Latents):
            self._use_latents()
        stage = self._build(name)
        # Not sooner: what has nothing to train, or cannot go on, keeps that by which it was.
        self._write("config.yaml", OmegaConf.to_yaml(self.settings, resolve=True))
        guard = DivergenceGuard(self.folder / name / LAST)
        options = self.settings.trainer
        averaging = Averaging(settings.ema, "cpu" if options.average_on_cpu else None)
        trainer = self._trainer(name, steps, averaging, guard)
        for network in stage.networks():
            if options.recompute:
                sharding.recompute(network, lora.context_fn(stage.backbone))
            if options.compile:
                compiled(network, stage.evaluated_by)
        try:
            resumed = resumable(guard.checkpoint, stage)
            trainer.fit(stage, datamodule=Fed(self.data), ckpt_path=resumed, weights_only=True)
        except SystemExit:  # what Lightning makes of Ctrl-C, its checkpoint written
            raise KeyboardInterrupt from None
        except DualError as error:  # of an operation in the plugin's backbone
            raise UserError(str(error)) from error
        average = averaging.whole()
        if trainer.is_global_zero:
            autoencoder = None if self.pretrained or name == "decoder" else self.autoencoder
            about = {"stage": name, "step": trainer.global_step, "autoencoder": autoencoder}
            if name == "student" and settings.init_from:
                about["init_from"] = (self.folder / directory.INIT).read_text()
            self._export(exported, average, adapter=lora.described(stage.backbone), **about)
            self._merge(exported)
            guard.forget_previous()
            console.console.print(f"{name}: {trainer.global_step} steps, weights in {exported}")
        trainer.strategy.barrier()  # the next stage reads what rank 0 has just written

    def _is_done(self, name: str, exported: Path, steps: int) -> bool:
        """Whether a stage has nothing more to train, or may not, and say so."""
        if not exported.exists():
            return False
        left = steps - storage.read(exported)[0]["step"]
        needed = directory.needed(self.folder, name) if left > 0 else None
        if left > 0 and not needed:
            return False
        self._merge(exported)
        console.console.print(f"{name}: done, {exported}{f', as {needed}' if needed else ''}")
        return True

    @rank_zero_only
    def _merge(self, exported: Path) -> None:
        """Give a LoRA student whole weights, where they are wanted and not there yet."""
        if self.settings.student.lora.merge and "lora" in storage.read(exported)[0]:
            storage.merge(exported, self._whole(exported) if self.teacher else None)

    @property
    def schema(self) -> Schema:
        """The data's, with held-out conditions as examples where a field needs them."""
        schema = self.data.condition
        size = sum(field.null(1).numel() for field in schema.values() if not field.enumerable)
        if not size:
            return schema
        n = max(1, min(EXAMPLES, NUMBERS // size))
        return with_examples(schema, spread(self.data.val_dataloader(), n).condition)

    def _stages(self) -> list[str]:
        """Those that were asked for: the one named, or all that there are."""
        known = STAGES if self.autoencoder and not self.pretrained else STAGES[1:]
        known = known[-1:] if self.teacher else known
        named = self.settings.stage
        if named and named not in known:
            raise UserError(f"stage={named} is none of {', '.join(known)}")
        return [named] if named else list(known)

    def _autoencoder(self) -> Autoencoder | None:
        """A new one of the data's samples, where this modality has one."""
        return self.spec.autoencoder(self.settings, tuple(self.data.shape), self.statistics)

    def _check_fit(self) -> None:
        """UserError, before anything is written, where data, autoencoder or backbone do not fit."""
        shape = tuple(self.data.shape)
        with torch.random.fork_rng(devices=[]):  # weights that are drawn here are not trained
            if self.autoencoder:
                shape = latent_shape(self.autoencoder, self.data.train_set.__getitems__([0]).x)
            schema = self.data.condition
            backbone = self.spec.backbone(self.settings, shape, schema, self.statistics)
            check_methods(self.settings.student, backbone)
            if self.settings.student.lora.rank:
                lora.targeted(backbone, self.settings.student.lora.targets)
            if self.teacher:
                pretrained.check_samples(self.teacher, backbone, shape, schema)
                pretrained.tell_classes(self.teacher, backbone, schema)
            if self.settings.student.init_from:
                path = Path(self.settings.student.init_from)
                checkpoint.check_weights(backbone, self._initial(path), path)

    def _use_latents(self) -> None:
        """From here on samples are latents of the autoencoder, trained before or pretrained."""
        if not self.pretrained:
            weights = trained(self.folder, "decoder")
            self.autoencoder = self._autoencoder()  # the one in training may be sharded by now
            checkpoint.load_weights(self.autoencoder, storage.read(weights)[1], weights)
        self.data = Latents(self.data, self.autoencoder, self.settings.data.batch_size)
        path, measured = self.folder / "latents.json", self.data.statistics["latents"]
        latents = agreed(path, measured, "on the latents of another decoder")
        self.statistics = {**self.statistics, "latents": latents}
        if latents != measured:
            self.data.standardise(self.statistics)
        self.codec = LatentCodec(self.autoencoder, self.codec, latents)
        self._write("latents.json", json.dumps(latents))

    def _build(self, name: str) -> Stage:
        seed_everything(self.seed, verbose=False)  # whether or not a stage was trained before it
        if name == "decoder":
            return autoencoding(self.autoencoder, self.settings.decoder)
        backbone, schema = self._backbone(), self.data.condition
        if name == "teacher":
            return teacher(backbone, schema, self.settings.teacher)
        if self.teacher:
            self._state_teacher(backbone.source)
        else:
            weights = trained(self.folder, "teacher")
            of_backbone, _ = storage.split(storage.read(weights)[1])
            checkpoint.load_weights(backbone, of_backbone, weights)
        options, begins = self.settings.student, not directory.student_begun(self.folder)
        pair = self._with_adapter if options.lora.rank else self._with_copy
        network, backbone = pair(backbone, begins)
        return student(backbone, schema, options, network, self.data.bounds)

    def _with_copy(self, backbone: nn.Module, begins: bool) -> tuple[nn.Module | None, nn.Module]:
        """The teacher's network, a copy, where there is one, and the student's, the backbone."""
        network = None
        if self.distils:
            network = self._backbone()
            network.load_state_dict(backbone.state_dict())
        if self.teacher:
            pretrained.slow_time(backbone, self.data, begins)
        if begins and self.settings.student.init_from:
            path = Path(self.settings.student.init_from)
            weights = self._initial(path)
            checkpoint.load_weights(backbone, weights, path)
            self._write(directory.INIT, fingerprint(weights))
            console.console.print(f"student: begins with the weights of {path}")
        return network, backbone

    def _initial(self, path: Path) -> dict[str, Tensor]:
        """The weights that a student begins with; UserError where its samples are others."""
        described, weights = storage.read_whole(path)
        latents = described["statistics"].get("latents") or {}
        if latents.get("autoencoder") != self._fingerprint_of_decoder():
            raise UserError(
                f"student.init_from={path} makes latents of another decoder: put the "
                f"decoder.safetensors that was trained with it into {self.folder}"
            )
        return storage.split(weights)[0]

    def _fingerprint_of_decoder(self) -> str | None:
        """What latents say of their autoencoder; "" before it is trained, None without one."""
        if not self.autoencoder:
            return None
        if self.pretrained:
            return fingerprint(self.autoencoder.state_dict())
        exported = self.folder / "decoder.safetensors"
        return fingerprint(storage.read(exported)[1]) if exported.exists() else ""

    def _with_adapter(
        self, backbone: nn.Module, begins: bool
    ) -> tuple[nn.Module | None, nn.Module]:
        """The same, but the teacher's is the student's without its adapter."""
        on: list[str] = []  # the names of the adapters that are
        slowed = pretrained.slow_time_while(on, backbone, self.data, begins) if self.teacher else []
        options = self.settings.student.lora
        given = options.rank, options.alpha, options.targets, on, slowed
        adapters = lora.Adapters(backbone, *given)
        return (adapters.off() if self.distils else None), adapters.new()

    def _backbone(self) -> nn.Module:
        """A new one for the data's samples; where it is pretrained, as it was."""
        about = tuple(self.data.shape), self.data.condition, self.statistics
        return self.spec.backbone(self.settings, *about)

    def _whole(self, exported: Path) -> dict[str, Tensor]:
        """All weights of an exported LoRA of a pretrained teacher."""
        described, weights = storage.read(exported)
        backbone = self._backbone()
        checkpoint.complete(backbone, weights, described, exported)
        pretrained.slow_as_trained(backbone, described, self.data.condition)
        return backbone.state_dict()

    @rank_zero_only
    def _state_teacher(self, source: str) -> None:
        """Export a pretrained teacher: whose weights it has, but none of them."""
        path = self.folder / "teacher.safetensors"
        if not path.exists():
            self._export(path, {}, stage="teacher", step=0, source=source)
        pretrained.check_source(path, self.teacher, source)

    def _export(self, path: Path, weights: dict[str, Tensor], **more: Any) -> None:
        """Write a stage's weights with all that is known of the samples."""
        known = {"condition": self.schema, "statistics": self.statistics}
        storage.export(path, weights, config=self.settings, shape=self.data.shape, **known, **more)

    def _trainer(
        self, name: str, steps: int, averaging: Averaging, guard: DivergenceGuard
    ) -> Trainer:
        options, folder = self.settings.trainer, self.folder / name / "samples"
        count, kept = options.ema_snapshots, self.folder / name / "ema"
        snapshots = [Snapshots(width, averaging.device, kept, count) for width in WIDTHS if count]
        callbacks = [
            averaging,
            *snapshots,
            Phases(averaging, *snapshots),
            Seeding(name, self.seed),
            guard,
            Checkpointing(options.checkpoint_every, guard),
            Logging(options.log_every),
            Speed(options.log_every, counts=not options.compile),
            Previews(options.preview_every, folder, self._preview(name), self.codec),
            ProgressBar(name, options.log_every),
            Interrupt(),
        ]
        if self.settings.max_time:
            callbacks.append(Timer(duration(self.settings.max_time), verbose=False))
        return trainer_of(
            options,
            max_steps=steps,
            callbacks=callbacks,
            plugins=WholeCheckpoints(),
            enable_checkpointing=False,  # by Lightning's own callback
            default_root_dir=self.folder,  # where it looks for what it saves under SLURM
            logger=TensorBoardLogger(self.folder, name="logs", version=name),
            limit_val_batches=0,
        )

    def _preview(self, name: str) -> Callable[[nn.Module], Any]:
        if name == "decoder":
            return reconstructions(self.data, self.codec)
        sampler = ("dpm", 16) if name == "teacher" else ("consistency", 2)
        last, of_data = self.settings.student.last_time, (self.data.shape, self.schema)
        return samples(*sampler, last, *of_data, self.codec, self.settings.seed)

    @rank_zero_only
    def _hold(self) -> None:
        """Have the folder for all processes of this run; UserError where another run has it."""
        self.lock.take()

    def _agree(self) -> dict[str, Any]:
        """What data.json says of the data, which go on with the statistics that the run began with.

        UserError where the folder holds a run on other data.
        """
        about = {
            "shape": self.data.shape,
            "condition": schema_to_dict(self.data.condition),
            "statistics": self.data.statistics,
        }
        if self.data.identity is not None:
            about["identity"] = self.data.identity
        about = agreed(self.folder / "data.json", about, "on other data")
        if about["statistics"] != json.loads(json.dumps(self.data.statistics)):
            self.data.standardise(about["statistics"])
        return about

    @rank_zero_only
    def _write(self, name: str, text: str) -> None:
        write_text(self.folder / name, text)
