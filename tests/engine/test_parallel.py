"""Two real processes, by torchrun, train the very model that one process trains."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STAGES = ("teacher", "student")
TOY = ["modality=toy_plugin:SPEC", "preset=cpu", "trainer.precision=32-true", "trainer.log_every=1"]
PHASES = "{endpoint: 1, steps: 4}, {consistency: 1, distribution_matching: 1, steps: 6}"
TOY += [f"student.phases=[{PHASES}]", "student.options.consistency.tangent_warmup=10"]
TOY += ["teacher.lr_warmup=5", "student.lr_warmup=2", "trainer.accelerator=cpu"]
TOY += ["max_steps=10", "trainer.checkpoint_every=4"]
SMOKE = ["preset=smoke", "trainer.accelerator=cpu"]


def start(command, *words, processes):
    """The command in one process, or by torchrun in several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launcher = [] if processes == 1 else launcher
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", f"scm_core.{command}", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(command, *words, processes):
    process = start(command, *words, processes=processes)
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    return said


def losses(out, stage):
    events = EventAccumulator(str(out / "logs" / stage))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss")}


def assert_close(out, expected):
    for stage in STAGES:
        found = losses(out, stage)
        wanted = losses(expected, stage)
        assert found.keys() == wanted.keys() and len(found) > 5
        torch.testing.assert_close(list(found.values()), list(wanted.values()), rtol=0, atol=2e-4)
        ours, theirs = (load_file(place / f"{stage}.safetensors") for place in (out, expected))
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)  # they are in half precision


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("single") / "run"
    run("train", *TOY, f"out={out}", processes=1)
    return out


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_two_processes_lose_what_one_loses(strategy, single, tmp_path):
    words = [*TOY, f"trainer.strategy={strategy}", "trainer.recompute=true"]
    said = run("train", *words, "trainer.average_on_cpu=true", f"out={tmp_path}", processes=2)
    assert said.count("student: 10 steps") == 1
    assert_close(tmp_path, single)
    ours, theirs = (
        torch.load(place / "student" / "last.ckpt", weights_only=True)["state_dict"]
        for place in (tmp_path, single)
    )
    assert ours.keys() == theirs.keys()  # a teacher is no part of its student


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_killed_run_goes_on_with_another_number_of_processes(before, after, single, tmp_path):
    def words(processes):
        strategy = "fsdp" if processes == 2 else "auto"
        return [*TOY, f"trainer.strategy={strategy}", f"out={tmp_path}"]

    killed = start("train", *words(before), processes=before)
    while not (tmp_path / "teacher" / "last.ckpt").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    run("train", *words(after), processes=after)
    assert_close(tmp_path, single)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_every_modality_trains_sharded_and_goes_on_alone(modality, tmp_path):
    words = [f"modality={modality}", *SMOKE, f"out={tmp_path}"]
    run("train", *words, "trainer.strategy=fsdp", processes=2)
    said = run("train", *words, "student.max_steps=8", processes=1)
    assert "student: 8 steps" in said


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(tmp_path):
    words = ["modality=image", "n=12", "batch_size=4", "seed=3"]
    for processes in (1, 2):
        said = run("sample", *words, f"out={tmp_path}/{processes}", processes=processes)
        assert said.count("12 samples in") == 1
    alone, together = (sorted((tmp_path / str(n)).iterdir()) for n in (1, 2))
    assert [path.name for path in alone] == [path.name for path in together]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(alone, together, strict=True))


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(fashion_root, tmp_path):
    words = ["modality=image", "preset=smoke", f"data.root={fashion_root}", "batch_size=16"]
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        run("evaluate", *words, f"out={out}", processes=processes)
        rows = json.loads((out / "metrics.json").read_text())["rows"]
        found.append([{k: v for k, v in row.items() if "seconds" not in k} for row in rows])
    assert len(found[0]) == 9 and found[0] == found[1]
