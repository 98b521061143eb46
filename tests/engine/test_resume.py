"""A run that is killed at any moment and resumed ends in the weights of one that never was."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scm_core.base.files import Lock
from scm_core.engine import config
from scm_core.engine import run as engine

STAGES = ("teacher", "student")
WORDS = ["modality=toy_plugin:SPEC", "preset=cpu", "max_steps=40", "trainer.checkpoint_every=3"]
PHASES = "{endpoint: 1, steps: 10}, {consistency: 1, distribution_matching: 1, steps: 30}"
WORDS += [f"student.phases=[{PHASES}]", "student.options.consistency.tangent_warmup=10"]
WORDS += ["trainer.accelerator=cpu", "trainer.accumulate=3", "teacher.lr_warmup=5"]


def start(out, *words, **options):
    """The training as a process of its own; 16 batches make an epoch of 6 steps."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "scm_core.train", *WORDS, *words, f"out={out}"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **streams, **options)


def finish(out):
    run = start(out)
    _, errors = run.communicate()
    assert run.returncode == 0, errors
    return {stage: load_file(out / f"{stage}.safetensors") for stage in STAGES}


def newest(out):
    """When any checkpoint was last written to, whole or not."""
    return max((path.stat().st_mtime for path in out.glob("*/*last*")), default=0)


def kill(out, moment):
    """Start, wait until a checkpoint is being written, kill -9 a while later; True if it lived."""
    before, run = newest(out), start(out)
    while run.poll() is None and newest(out) == before:
        time.sleep(0.001)
    time.sleep(moment)
    alive = run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.communicate()
    return alive


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of the uninterrupted run."""
    return finish(tmp_path_factory.mktemp("whole") / "run")


def assert_same(weights, whole):
    for stage in STAGES:
        assert weights[stage].keys() == whole[stage].keys()
        different = [k for k, v in weights[stage].items() if not v.equal(whole[stage][k])]
        assert not different, (stage, different)


def test_two_runs_of_one_seed_are_the_same(whole, tmp_path):
    assert_same(finish(tmp_path / "run"), whole)


def test_a_run_killed_while_it_writes_is_resumed_bit_for_bit(whole, tmp_path):
    killed = [kill(tmp_path / "run", moment) for moment in (0.0, 0.05)]
    assert all(killed)
    assert_same(finish(tmp_path / "run"), whole)


@pytest.mark.slow
def test_fifty_kills_lose_no_run_and_change_no_bit(whole, tmp_path):
    play, kills, runs = random.Random(0), 0, 0
    while kills < 50:
        out = tmp_path / str(runs)
        for _ in range(play.randint(1, 4)):
            kills += kill(out, play.choice((0.0, play.random())))
        assert_same(finish(out), whole)
        runs += 1
    print(f"{kills} kills in {runs} runs")


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(tmp_path):
    """As far as a limit on the size of files is a full disk: writing fails halfway."""
    out = tmp_path / "run"
    run = start(out, "max_steps=6")
    run.communicate()
    last = out / "student" / "last.ckpt"
    before = last.read_bytes()
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (len(before) // 2,) * 2)
    run = start(out, preexec_fn=limit)
    _, errors = run.communicate()
    assert run.returncode == 2 and "cannot write" in errors and "Traceback" not in errors, errors
    assert last.read_bytes() == before
    finish(out)  # and goes on, of which 6 steps had been a whole epoch


def test_a_stage_begins_alike_whatever_went_before(tmp_path):
    """As after a stage that this process has trained, or an earlier one."""
    out = tmp_path / "run"
    begun = engine.Run(*config.load([*WORDS, f"out={out}"]), Lock(out))
    first, _, second = begun._build("teacher"), torch.randn(3), begun._build("teacher")
    weights, others = first.backbone.state_dict(), second.backbone.state_dict()
    assert all(torch.equal(value, others[key]) for key, value in weights.items())
