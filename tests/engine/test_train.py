"""The command lines as a user runs them: real processes, real images, real interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scm_core import evaluate, sample, train
from scm_core.base import console

SMOKE = ["modality=image", "preset=smoke"]
NO_DATA = ["data.root=/no/such/folder"]  # what is refused is refused before they are looked for
STAGES = ("teacher", "student")
MATCHING = "student.options.distribution_matching"
COMMANDS = {"train": train, "sample": sample, "evaluate": evaluate}


def process(command, *words):
    """`python -m scm_core.COMMAND words` as a process of its own."""
    line = [sys.executable, "-m", f"scm_core.{command}", *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process; what it says, or with `ok=False` its one error line."""

    def run(command, *words, ok=True):
        monkeypatch.setattr(sys, "argv", [command, *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            console.run(COMMANDS[command].main, COMMANDS[command].__doc__)
        said = capsys.readouterr()
        assert caught.value.code == (0 if ok else 2), said
        if ok:
            return said.out
        assert said.err.startswith("error: ") and said.err.count("\n") == 1
        return said.err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fashion_root):
    """A run directory in which both stages have been trained for four steps, from elsewhere."""
    out = tmp_path_factory.mktemp("run") / "image"
    command = process("train", *SMOKE, f"data.root={fashion_root}", f"out={out}")
    said, errors = command.communicate()
    assert command.returncode == 0, errors
    assert "student: 4 steps" in said and "Traceback" not in errors
    return out


def metadata(path):
    with safe_open(path, "pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def test_both_stages_leave_a_complete_run_directory(trained):
    for stage in ("teacher", "student"):
        described = metadata(trained / f"{stage}.safetensors")
        assert (described["stage"], described["step"]) == (stage, 4)
        assert described["shape"] == [1, 28, 28]
        assert (trained / stage / "last.ckpt").exists()
        assert list((trained / stage / "samples").glob("*.png"))
        assert list((trained / "logs" / stage).glob("events*"))
    assert "preset: smoke" in (trained / "config.yaml").read_text()


def test_a_repeated_command_does_nothing_more(run, trained, fashion_root):
    kept = [trained / "student.safetensors", trained / "config.yaml"]
    before = [path.read_bytes() for path in kept]
    said = run("train", *SMOKE, f"data.root={fashion_root}", f"out={trained}", "teacher.lr=5")
    assert "teacher: done" in said and "student: done" in said
    assert [path.read_bytes() for path in kept] == before


def test_more_steps_go_on_from_the_last(run, trained, fashion_root, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", trained, copy], check=True)
    words = [*SMOKE, "stage=student", f"data.root={fashion_root}", f"out={copy}", "max_steps=6"]
    said = run("train", *words)
    assert "5/6" in said and "3/6" not in said
    assert metadata(copy / "student.safetensors")["step"] == 6


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_resumes(run, tmp_path, fashion_root, stop):
    """Killed with -9 or by Ctrl-C, the same command goes on at the last checkpoint."""
    words = [*SMOKE, "stage=teacher", f"data.root={fashion_root}", f"out={tmp_path}/run"]
    words += ["max_steps=5000"]
    command = process("train", *words)
    last = tmp_path / "run" / "teacher" / "last.ckpt"
    while not last.exists():
        assert command.poll() is None
        time.sleep(0.05)
    command.send_signal(stop)
    _, said = command.communicate()
    if stop == signal.SIGINT:
        assert command.returncode == 130
        assert "run the same command again" in said and "Traceback" not in said
    reached = torch.load(last, weights_only=True)["global_step"]
    assert reached >= 2
    words[-1] = f"max_steps={reached + 2}"
    said = run("train", *words)
    assert f"{reached + 1}/{reached + 2}" in said
    assert f"{reached}/{reached + 2} " not in said
    assert metadata(tmp_path / "run" / "teacher.safetensors")["step"] == reached + 2


def test_consistency_training_needs_no_teacher_velocity(run, trained, fashion_root, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    os.link(trained / "teacher.safetensors", copy / "teacher.safetensors")
    words = [*SMOKE, "stage=student", "student.method=train", f"data.root={fashion_root}"]
    said = run("train", *words, f"out={copy}", ok=False)
    words += re.findall(r"student\.guidance=\d|student\.phases=\[.*?\]", said)
    words += ["max_steps=4"]
    run("train", *words, f"out={copy}")
    assert metadata(copy / "student.safetensors")["config"]["student"]["method"] == "train"


def test_the_transformer_trains_too(run, fashion_root, tmp_path):
    words = [*SMOKE, f"data.root={fashion_root}", f"out={tmp_path}/run", "max_steps=2"]
    words += ["backbone.name=transformer", "backbone.patch=4", "trainer.accumulate=2"]
    said = run("train", *words)
    assert all(said.count(f"{stage} {i}/2 ") == 1 for stage in STAGES for i in (1, 2))
    assert metadata(tmp_path / "run" / "student.safetensors")["step"] == 2


def test_two_processes_train_one_model(fashion_root, tmp_path):
    """Both stages under DDP: rank 1 follows, rank 0 alone writes and speaks."""
    words = [*SMOKE, f"data.root={fashion_root}", f"out={tmp_path}/run", "max_steps=2"]
    words += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    command = process("train", *words)
    said, errors = command.communicate()
    assert command.returncode == 0, errors
    assert said.count("student: 2 steps") == 1
    assert metadata(tmp_path / "run" / "student.safetensors")["step"] == 2


def test_a_diverging_run_stops_and_says_where(run, fashion_root, tmp_path):
    words = [*SMOKE, "stage=teacher", f"data.root={fashion_root}", f"out={tmp_path}/run"]
    run("train", *words)
    last = tmp_path / "run" / "teacher" / "last.ckpt"
    before = last.read_bytes()
    due = "trainer.checkpoint_every=7"  # at the very step that diverges
    said = run("train", *words, "teacher.lr=1e8", "max_steps=200", due, ok=False)
    assert last.read_bytes() == before
    assert "diverged at step" in said and "at t in [" in said
    assert f"the last good checkpoint is {tmp_path}/run/teacher/last.ckpt" in said
    facts = json.loads((tmp_path / "run" / "teacher" / "diverged.json").read_text())
    assert len(set(facts["samples"])) == len(facts["t"]) == len(facts["loss"]) == 16
    assert facts["step"] == 7


def test_a_run_logs_how_fast_it_is(trained):
    events = EventAccumulator(str(trained / "logs" / "student"))
    events.Reload()
    for name in ("samples per second", "TFLOP per second", "seconds to write a checkpoint"):
        assert all(event.value > 0 for event in events.Scalars(f"speed/{name}"))
    waited = [event.value for event in events.Scalars("speed/share of time waiting for data")]
    assert all(0 < share < 1 for share in waited)


def test_max_time_ends_a_stage_with_its_weights(run, fashion_root, tmp_path):
    words = [*SMOKE, "stage=teacher", f"data.root={fashion_root}", f"out={tmp_path}/run"]
    run("train", *words, "max_steps=100000", "max_time=00:00:03")
    assert 0 < metadata(tmp_path / "run" / "teacher.safetensors")["step"] < 100000


def test_same_seed_same_pixels(run, trained, tmp_path):
    def pixels(name, *words):
        checkpoint = f"checkpoint={trained}/student.safetensors"
        run("sample", checkpoint, "n=5", f"out={tmp_path}/{name}", *words)
        assert len(list((tmp_path / name).glob("0*.png"))) == 5
        return (tmp_path / name / "overview.png").read_bytes()

    first = pixels("a", "seed=3")
    assert first == pixels("b", "seed=3")
    assert first != pixels("c", "seed=4")


def test_teacher_samples_by_any_sampler(run, trained, tmp_path):
    for sampler in ("ddim", "heun", "dpm"):
        out = tmp_path / sampler
        words = [f"checkpoint={trained}/teacher.safetensors", f"sampler={sampler}", "steps=2"]
        run("sample", *words, "n=2", "label=[coat,0]", "guidance=2.0", f"out={out}")
        assert Image.open(out / "00001.png").size == (28, 28)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["modality=imgae"], "did you mean image?"),
        (["modality=image", "teacher.lrr=1"], "did you mean teacher.lr?"),
        (["modality=image", "data.root=/no/such/folder"], "/no/such/folder"),
        (["modality=image", "data.name=folder", "data.root=/no/such/folder"], "not a folder"),
        (["modality=image", "stage=studnet"], "studnet"),
        (["modality=image", "max_time=soon", "preset=smoke"], "max_time=soon"),
        (["modality=image", "student.options.endpoint.solver=heun"], "heun is none of ddim, dpm"),
        (["modality=image", "student.options.consistency.norm=L2"], "norm=L2 is none of l2, rms"),
        (["modality=image", "student.ema=0.3"], "must lie between 0 and 0.289"),
        (["modality=image", "trainer.log_every=0"], "trainer.log_every=0 must be at least 1"),
        ([*SMOKE, *NO_DATA, "trainer.checkpoint_every=-1"], "checkpoint_every=-1 must be at least"),
        ([*SMOKE, *NO_DATA, "max_steps=0"], "max_steps=0 must be at least 1"),
        ([*SMOKE, *NO_DATA, "student.lr_warmup=-1"], "student.lr_warmup=-1 must be at least 0"),
        ([*SMOKE, *NO_DATA, "teacher.lr=nan"], "teacher.lr=nan must be a number above 0"),
        ([*SMOKE, *NO_DATA, "limits.frames=0"], "limits.frames=0 must be at least 1"),
        ([*SMOKE, "trainer.devices=0"], "trainer.*: "),
        (["modality=image", f"{MATCHING}.rollouts=[]"], f"{MATCHING}.rollouts=[] must be"),
        (["modality=image", f"{MATCHING}.rollout=2"], f"no key {MATCHING}.rollout; did you mean"),
        (["modality=image", f"{MATCHING}.draws=few"], f"{MATCHING}.draws: "),
        (["modality=image", "student.options.endpiont.points=2"], "did you mean endpoint?"),
        (["modality=image", "student.phases=[{endpiont: 1, steps: 2}]"], "did you mean endpoint?"),
        (["modality=image", "student.phases=[{endpoint: 1, step: 2}]"], "has no steps"),
        (["modality=image", "student.phases=[{steps: 2}]"], "has no objective"),
        (["modality=image", "student.phases=[{endpoint: 1, steps: 0}]"], "steps=0 must be"),
        (["modality=image", "student.phases=[{endpoint: 0, steps: 1}]"], "endpoint=0.0 must be a"),
        (["modality=image", "student.phases=[]"], "leaves nothing to train"),
        (["modality=image", "student.midtraining.steps=3"], "is gone: give student.phases="),
        ([*SMOKE, *NO_DATA, "data.workers=-1"], "data.workers=-1 must be at least 0"),
        ([*SMOKE, *NO_DATA, "student.guidance=nan"], "student.guidance=nan must be a number from"),
        ([*SMOKE, *NO_DATA, "teacher.condition_dropout=10"], "10.0 must be between 0 and 1"),
        ([*SMOKE, *NO_DATA, "student.options.diffusion.condition_dropout=-1"], "between 0 and 1"),
        ([*SMOKE, "pretrained=one", "teacher=another"], "mean the same: give one of them"),
        ([*SMOKE, "max_time=99999999999:00:00:00"], "is not DD:HH:MM:SS"),
        ([*SMOKE, "student.phases=[{reconstruction: 1, steps: 2}]"], "a backbone with encode()"),
        (
            [
                *SMOKE,
                "pretrained=any",
                "student.phases=[{consistency: 1, flow_anchor: 1, steps: 2}]",
            ],
            "flow_anchor asks the network at times below 0",
        ),
    ],
)
def test_train_says_what_is_wrong(run, words, sentence, tmp_path, fashion_root):
    if not any(word.startswith("data.root") for word in words):
        words = [*words, f"data.root={fashion_root}"]
    assert sentence in run("train", *words, f"out={tmp_path}/run", ok=False)


def test_any_integer_is_a_seed(tmp_path):
    words = ["modality=toy_plugin:SPEC", "preset=cpu", "stage=teacher", "max_steps=1"]
    words += ["trainer.accelerator=cpu"]
    for seed in (-1, 1 << 32, 10**30):
        train.main([*words, f"seed={seed}", f"out={tmp_path}/{seed}"])
    weights = [load_file(path) for path in tmp_path.glob("*/teacher.safetensors")]
    assert len({tuple(float(w.float().sum()) for w in each.values()) for each in weights}) == 3


def test_another_backbone_does_not_overwrite_a_run(run, trained, fashion_root):
    words = [*SMOKE, f"data.root={fashion_root}", f"out={trained}", "backbone.size=small"]
    assert "another backbone" in run("train", *words, ok=False)


def test_a_student_needs_its_teacher(run, fashion_root, tmp_path):
    words = [*SMOKE, "stage=student", f"data.root={fashion_root}", f"out={tmp_path}/run"]
    assert "train it first" in run("train", *words, ok=False)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["checkpoint={out}/nothing.safetensors"], "no checkpoint at"),
        (["checkpoint={out}/config.yaml"], "not a readable safetensors file"),
        (["checkpoint=checkpoints/video/decoder.safetensors"], "a decoder, which draws nothing"),
        (["checkpoint={student}", "guidance=3"], "distilled at guidance"),
        (["checkpoint={student}", "label=dog"], "no class 'dog'"),
        (["checkpoint={student}", "label=[0,on]"], "no class 'on'"),  # not YAML's true
        (["checkpoint={student}", "stesp=3"], "did you mean steps?"),
        (["checkpoint={student}", "steps=0"], "at least 1"),
        (["checkpoint={teacher}", "sampler=huen"], "did you mean heun?"),
        ([], "give checkpoint=FILE"),
    ],
)
def test_sample_says_what_is_wrong(run, trained, words, sentence):
    places = {
        "out": trained,
        "student": trained / "student.safetensors",
        "teacher": trained / "teacher.safetensors",
    }
    assert sentence in run("sample", *[word.format(**places) for word in words], ok=False)


def test_the_process_exits_with_2():
    command = process("train", "modality=imgae")
    said, errors = command.communicate()
    assert (command.returncode, said) == (2, "")
    assert errors == "error: no modality is called imgae; did you mean image?\n"


def test_a_checkpoint_of_another_modality_is_refused(run, trained, tmp_path):
    source = trained / "student.safetensors"
    with safe_open(source, "pt") as file:
        weights, described = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
    foreign = tmp_path / "foreign.safetensors"
    save_file(weights, foreign, {**described, "modality": '"audio"'})
    said = run("sample", f"checkpoint={foreign}", "modality=image", ok=False)
    assert "holds a model of audio, not of image" in said


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_help_lists_the_keys(run, command):
    said = run(command, "--help")
    assert "checkpoint=" in said or "modality=" in said


def test_a_folder_keeps_to_its_model_and_its_data(run, trained, fashion_root):
    words = [*SMOKE, f"data.root={fashion_root}", f"out={trained}"]
    assert "another backbone: choose another out=" in run(
        "train", *words, "backbone.size=small", ok=False
    )
    assert "on other data: choose another out=" in run("train", *words, "data.size=32", ok=False)
