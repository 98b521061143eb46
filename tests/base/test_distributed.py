"""Several processes that work together, and how they end."""

import subprocess
import sys

PAIRS = """
import os, sys, tempfile
import torch
from torch import distributed
from scm_core import UserError
from scm_core.base import console

def main(words):
    meeting = f"file://{place}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for _ in range(20):
        distributed.all_reduce(torch.ones(3), async_op=True)
    print("done")
    if code:
        raise UserError("wrong")

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for code in (0, 2, 0, 2, 0, 2):
    place, children = tempfile.mktemp(), []
    for rank in range(2):
        if not (pid := os.fork()):
            console.run(main, "")
        children.append(pid)
    print([*map(wait, children)], flush=True)
"""


def test_a_pair_ends_with_its_code_though_gloo_still_frees_tensors():
    """Where Python is taken down meanwhile, every third process aborts."""
    ran = subprocess.run([sys.executable, "-c", PAIRS], capture_output=True, text=True)
    said = [line for line in ran.stdout.splitlines() if line.startswith("[")]
    assert said == ["[0, 0]", "[2, 2]"] * 3, ran.stderr
    assert ran.stdout.count("done") == 12
