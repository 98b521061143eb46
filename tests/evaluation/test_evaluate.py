"""Evaluation on a toy modality whose samplers are exact, and its command line."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from scm_core.apps import evaluate
from scm_core.base.errors import UserError
from scm_core.contract.config import Config
from scm_core.contract.fields import Label
from scm_core.contract.spec import SIGMA_DATA, Batch, Codec, DataModule, ModalitySpec
from scm_core.data.media import curve_images, image_grid
from scm_core.engine import checkpoint, config, storage
from scm_core.evaluation import evaluator

SCHEMA = {"label": Label(2)}


@dataclass
class ToyData:
    size: int = 8
    root: str | None = None  # says by which seed the data are drawn


@dataclass
class ToyConfig(Config):
    modality: str = "test_evaluate:SPEC"
    data: ToyData = field(default_factory=ToyData)


class ToyDataModule(DataModule):
    """N(0, sigma_data^2) in any number of elements; three quarters of the test labels are 1."""

    statistics = {}
    condition = SCHEMA

    def __init__(self, data):
        self.shape, self.seed = (1, data.size), 2 * int(data.root or 0)

    def setup(self):
        pass

    def _batches(self, seed, count):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            x = SIGMA_DATA * torch.randn(40, *self.shape, generator=generator)
            yield Batch(x, {"label": (torch.arange(40) % 4 > 0).long()})

    def train_dataloader(self):
        return self._batches(self.seed + 1, 100)

    def val_dataloader(self):
        return self._batches(self.seed + 2, 10)

    def real(self, split):
        seed, count = {"train": (self.seed + 1, 100), "test": (self.seed + 2, 10)}[split]
        for x, condition in self._batches(seed, count):
            yield x.double(), condition


class ToyBackbone(nn.Module):
    """Exact for that data: F = 0 is its velocity, F = -tan(t/2) x its consistency function."""

    def __init__(self, size):
        super().__init__()
        self.student = nn.Parameter(torch.zeros(size))

    def forward(self, x, t, condition):
        return -self.student * (t / 2).tan()[:, None, None] * x


class ToyCodec(Codec):
    def encode(self, media):
        return media.float()

    def decode(self, x):
        return x.double()

    def save(self, media, path):
        raise NotImplementedError

    def preview(self, media):
        return image_grid(curve_images(media.flatten(1)))


class LossyCodec(ToyCodec):
    """Loses half of the amplitude of media that last two seconds."""

    exact = False

    def decode(self, x):
        return x.double() / 2

    def seconds(self, media):
        return 2.0


class ToyFeatures:
    name = "toy"
    calls = 0
    factor = 1

    def __call__(self, media):
        type(self).calls += 1
        return self.factor * media.flatten(1).float()


class Scored:
    """A scorer that has features of its own, ten times the chooser's."""

    def __init__(self):
        self.features = (Absolute(), Tenfold())

    def __call__(self, media, condition):
        return {"second_class": condition["label"].float()}


class Tenfold(ToyFeatures):
    name, factor = "tenfold", 10


class Absolute:
    """Features of somebody's own."""

    name = "absolute"

    def __call__(self, media):
        return media.abs().flatten(1).float()


class Unflattened:
    """Features that are the media."""

    name = "unflattened"

    def __call__(self, media):
        return media


class Doubled(ToyFeatures):
    """Other features of the same name."""

    factor = 2


SPEC = ModalitySpec(
    name="toy",
    config=ToyConfig,
    config_file=Path(__file__).parents[1] / "assets" / "toy.yaml",
    presets=Path(__file__).parents[1],
    build_data=lambda config: ToyDataModule(config.data),
    build_backbone=lambda config, shape, *_: ToyBackbone(shape[-1]),
    build_codec=lambda config, statistics: ToyCodec(),
    build_features=lambda config: ToyFeatures(),
    build_scorer=lambda config, data: lambda media, c: {"second_class": c["label"].float()},
)


@pytest.fixture
def student(tmp_path, monkeypatch):
    """A student's file with its teacher beside it, and a cheap plan."""
    plan = evaluator.Plan(200, 600, (("heun", 32), ("dpm", 3), ("ddim", 2)), (("heun", 16),))
    monkeypatch.setitem(evaluator.PLANS, "smoke", plan)
    for stage, gain in (("teacher", 0.0), ("student", 1.0)):
        storage.export(
            tmp_path / f"{stage}.safetensors",
            {"student": torch.full((8,), gain)},
            stage=stage,
            step=7,
            config=config.defaults(SPEC),
            shape=(1, 8),
            condition=SCHEMA,
            statistics={},
        )
    return tmp_path / "student.safetensors"


def run(student, *words):
    """The metrics that the command writes."""
    named = ["modality=test_evaluate:SPEC", f"checkpoint={student}", "preset=smoke"]
    evaluate.main([*named, "batch_size=64", *words])
    return json.loads((student.parent / "metrics.json").read_text())


def test_exact_samplers_are_as_good_as_real_data(student, capsys):
    metrics = run(student)
    rows = {row["name"]: row for row in metrics["rows"]}
    assert {name: row.get("nfe") for name, row in rows.items()} == {
        "real test set": None,
        "student, 1 step": 1,
        "student, 2 steps": 2,
        "student, 4 steps": 4,
        "student, 8 steps": 8,
        "teacher, heun 32 steps, guidance 1.5": 126,
        "teacher, dpm 3 steps, guidance 1.5": 6,
        "teacher, ddim 2 steps, guidance 1.5": 4,
        "teacher, heun 16 steps, guidance 1": 31,
    }
    for row in rows.values():
        assert row["n"] == 200
        assert row["second_class"] == pytest.approx(0.75, abs=0.1)
        if "dpm" in row["name"] or "ddim" in row["name"]:  # too few steps for an ODE's sampler
            assert row["fd_toy"] > 0.5 and row["recall_toy"] < 0.2
        else:
            assert row["fd_toy"] < 0.1 and abs(row["kid_toy"]) < 0.01
            assert row["precision_toy"] > 0.8 and row["recall_toy"] > 0.8
    drawn = [row["second_class"] for row in metrics["rows"]]
    assert len(set(drawn)) == 1  # every row is given the test set's own conditions
    costs = [row for row in metrics["rows"] if row["model"] != "real"]
    for row in costs:
        seconds = row["sampling_seconds"] + row["decoding_seconds"]
        assert row["seconds_per_sample"] == pytest.approx(seconds)
    assert metrics["ratios"]["reference"] == "teacher, heun 32 steps, guidance 1.5"
    assert metrics["ratios"]["reference_time_over_two_step_time"] > 5
    assert metrics["ratios"]["two_step_second_class_over_real"] == 1
    assert metrics["guidance"] == 1.5 and metrics["student"]["step"] == 7
    assert metrics["trajectories"]["n"] == metrics["memorisation"]["n"] == 200
    assert metrics["trajectories"]["mean_rms"] < 0.05
    assert metrics["memorisation"]["median_over_test"] == pytest.approx(1, abs=0.1)
    for picture in ("quality_time", "trajectories", "nearest"):
        written = (student.parent / f"{picture}.png").read_bytes()
        assert written.startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "their second class over that of the real test set" in printed
    assert "decoded" not in printed and "real time" not in printed


def test_what_a_decoder_loses_is_a_row_of_its_own(student, monkeypatch, capsys):
    exact = run(student)["rows"][0]
    (student.parent / "metrics.json").unlink()  # which is of more samples
    lossy = replace(
        SPEC,
        build_codec=lambda config, statistics: LossyCodec(),
        evaluation_samples={"smoke": 100},
        targets={"two_step_distance_over_best_teacher": 1.5},
    )
    monkeypatch.setitem(globals(), "SPEC", lossy)
    real, decoded, _, two, *_ = run(student)["rows"]
    assert real["fd_toy"] < 0.1 and real["n"] == 100 != exact["n"]
    assert decoded["name"] == "real test set, decoded"
    assert decoded["second_class"] == real["second_class"]
    # N(0, s^2) against N(0, (s/2)^2) in 8 elements is at the distance 8 (s/2)^2.
    assert decoded["fd_toy"] == pytest.approx(8 * (SIGMA_DATA / 2) ** 2, rel=0.2)
    assert two["fd_toy"] == pytest.approx(decoded["fd_toy"], rel=0.2)
    assert two["media_seconds"] == 2
    assert two["real_time_factor"] == pytest.approx(2 / two["seconds_per_sample"])
    printed = capsys.readouterr().out
    assert "× real time" in printed and "at most 1.5" in printed


def test_a_bad_student_is_seen(student):
    wrong = load_file(student)["student"] * 0 + 0.5
    model = checkpoint.load(student, "test_evaluate:SPEC")
    storage.export(
        student,
        {"student": wrong},
        stage="student",
        step=8,
        config=model.config,
        shape=model.shape,
        condition=model.condition,
        statistics={},
    )
    rows = {row["name"]: row for row in run(student)["rows"]}
    assert rows["student, 1 step"]["fd_toy"] > 10 * rows["real test set"]["fd_toy"]


def test_an_interrupted_evaluation_goes_on(student, monkeypatch):
    whole = run(student)
    draw, drawn = evaluator.Bench.draw, []

    def counted(self, model, setting, *rest):
        if len(drawn) == 3:
            drawn.append("interrupted")
            raise KeyboardInterrupt
        drawn.append(setting.name)
        return draw(self, model, setting, *rest)

    monkeypatch.setattr(evaluator.Bench, "draw", counted)
    with pytest.raises(KeyboardInterrupt):
        run(student)
    resumed = run(student)
    names = [row["name"] for row in whole["rows"]]
    assert [row["name"] for row in resumed["rows"]] == names
    assert [name for name in drawn if name != "interrupted"] == names[1:]
    for a, b in zip(whole["rows"], resumed["rows"], strict=True):
        quality = {key for key in a if "seconds" not in key}
        assert {key: a[key] for key in quality} == {key: b[key] for key in quality}


@pytest.mark.parametrize(
    "word", ["seed=1", "data.root=7", "features=test_evaluate:Doubled"], ids=str
)
def test_rows_of_another_seed_other_data_or_features_are_measured_again(student, monkeypatch, word):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluator.Bench, "draw", interrupted)
        run(student)
    partial = student.parent / "metrics.partial.json"
    left = json.loads(partial.read_text())["rows"]["real test set"]
    fresh = run(student, word)["rows"][0]
    assert fresh["fd_toy"] != left["fd_toy"]
    assert not partial.exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["n=3"], "at least 4"),
        (["batch_size=0"], "at least 1"),
        (["preset=smok"], "did you mean smoke"),
        (["sed=1"], "did you mean seed"),
        (["data.sise=9"], "did you mean data.size"),
        (["data.size=9"], r"\(1, 9\)"),
        (["teacher=nowhere.safetensors"], "no checkpoint at nowhere"),
        (["modality=image"], "not of image"),
        (["features=no_such_module:Kind"], "features=no_such_module:Kind cannot be used"),
        (["features=test_evaluate:NoKind"], "NoKind"),
        (["features=collections:OrderedDict"], "is no Features"),
        (["features=test_evaluate:Unflattened"], r"extractor unflattened gives \(40, 1, 8\)"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(student, words, sentence):
    with pytest.raises(UserError, match=sentence):
        run(student, *words)


def test_data_of_other_classes_are_refused(student, monkeypatch):
    """Their numbers would stand for other classes than those that the model draws."""
    monkeypatch.setattr(ToyDataModule, "condition", {"label": Label(2, ("cat", "dog"))})
    with pytest.raises(UserError, match="other conditions than the student: label is .*'cat'"):
        run(student)
    monkeypatch.setattr(ToyDataModule, "condition", {**SCHEMA, "size": Label(3)})
    with pytest.raises(UserError, match="size is Label.classes=3.*there none"):
        run(student)


def test_features_of_ones_own_take_the_place_of_the_plugins(student):
    real = run(student, "features=test_evaluate:Absolute")["rows"][0]
    assert real["fd_absolute"] < 0.1 and "fd_toy" not in real


def test_every_extractor_has_its_distances_and_ratios(student, monkeypatch, capsys):
    targets = {
        "two_step_distance_over_best_teacher": 1e-9,
        "reported_two_step_distance_over_best_teacher": 1e9,
        "two_step_recall_minus_best_teacher": -1,
    }
    both = replace(SPEC, build_scorer=lambda config, data: Scored(), targets=targets)
    monkeypatch.setitem(globals(), "SPEC", both)
    metrics = run(student)
    names = ["toy", "absolute", "tenfold"]
    assert metrics["features"] == "toy" and list(metrics["extractors"]) == names
    for row in metrics["rows"]:
        assert row["fd_tenfold"] == pytest.approx(100 * row["fd_toy"], rel=1e-3, abs=1e-6)
        for kind in ("precision", "recall"):  # which know no unit
            assert row[f"{kind}_tenfold"] == pytest.approx(row[f"{kind}_toy"], abs=0.01)
        for name in names:
            assert row[f"kid_{name}_std"] >= 0
    found = metrics["ratios"]["by_extractor"]
    assert list(found) == names
    assert found["toy"]["best_teacher"] == metrics["ratios"]["best_teacher"]
    met = {(one["ratio"], one["extractor"]): one["met"] for one in metrics["targets"]}
    assert met == {
        **{("two_step_distance_over_best_teacher", name): name != "toy" for name in names},
        **{("two_step_recall_minus_best_teacher", name): True for name in names},
    }
    printed = capsys.readouterr().out
    assert "distances in tenfold (only reported)" in printed and "missed" in printed


def test_several_features_can_be_named_the_first_being_the_chooser(student):
    metrics = run(student, "features=[test_evaluate:Absolute,test_evaluate:Doubled]")
    assert metrics["features"] == "absolute"
    assert "fd_absolute" in metrics["rows"][0] and "fd_toy" in metrics["rows"][0]
    with pytest.raises(UserError, match="two extractors are called toy"):
        run(student, "features=[test_evaluate:ToyFeatures,test_evaluate:Doubled]")


@pytest.mark.slow
def test_compiled_networks_draw_what_others_draw(student):
    eager, compiled = run(student)["rows"], run(student, "compile=true")
    assert compiled["compiled"]
    for one, other in zip(eager, compiled["rows"], strict=True):
        assert other["fd_toy"] == pytest.approx(one["fd_toy"], rel=0.01, abs=1e-4)


def test_student_and_teacher_are_not_mistaken_for_each_other(student, tmp_path):
    with pytest.raises(UserError, match="wants a student"):
        run(tmp_path / "teacher.safetensors")
    with pytest.raises(UserError, match="name it by teacher="):
        run(student, f"teacher={student}")


class Strayed(ToyBackbone):
    """Exact without a condition, the further from it the more it is guided by one."""

    def forward(self, x, t, condition):
        return 0.3 * x * (condition["label"] < 2).view(-1, 1, 1)


def test_a_teacher_is_measured_by_its_guidance(student, tmp_path, monkeypatch, capsys):
    strayed = replace(SPEC, build_backbone=lambda config, shape, *_: Strayed(shape[-1]))
    monkeypatch.setitem(globals(), "SPEC", strayed)
    teacher = tmp_path / "teacher.safetensors"
    named = ["modality=test_evaluate:SPEC", f"checkpoint={teacher}", "preset=smoke"]
    evaluate.main([*named, "guidance=[2,0,1,2]"])
    found = json.loads((tmp_path / "guidance.json").read_text())
    real, *rows = found["rows"]
    distances = {row["guidance"]: row["fd_toy"] for row in rows}
    assert list(distances) == [2, 0, 1] and distances[0] < distances[1] < distances[2]
    assert distances[0] == pytest.approx(real["fd_toy"], abs=0.05)
    assert "student" not in found and found["teacher"]["step"] == 7
    assert (tmp_path / "guidance.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "guidance.partial.json").exists()
    assert "teacher, heun 16 steps, guidance 2" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a teacher; checkpoint= wants a student"):
        evaluate.main([*named, "guidance=2", f"teacher={teacher}"])
    pair = run(student, "guidance=[0,1.5,1]")  # 1.5 is the student's own, and without is a row
    added = {row["name"] for row in pair["rows"] if row.get("steps") == 16}
    assert added == {f"teacher, heun 16 steps, guidance {one}" for one in (0, 1, "1.5")}
    assert pair["ratios"]["best_teacher"] == "teacher, heun 16 steps, guidance 0"
    for wrong in ("guidance=much", "guidance=-1", "guidance=[1,true]"):
        with pytest.raises(UserError, match="no number from 0 on"):
            run(student, wrong)


def test_figures_of_more_samples_are_not_replaced(student, tmp_path):
    run(student)
    kept = (student.parent / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="figures of 200 samples.*give out=FOLDER"):
        run(student, "n=100")
    assert (student.parent / "metrics.json").read_bytes() == kept
    run(student, "n=100", f"out={tmp_path / 'others'}")
    with pytest.raises(UserError, match="downloaded student go"):
        evaluate.main(["checkpoint=hub:owner/name"])


def test_a_folder_that_cannot_be_written_to_is_found_at_once(student, tmp_path):
    (tmp_path / "file").write_text("")
    before = ToyFeatures.calls
    with pytest.raises(UserError, match="cannot write"):
        run(student, f"out={tmp_path / 'file'}")
    assert ToyFeatures.calls == before
