"""What the disk refuses is one sentence; the file before stays, and nothing else."""

import resource

import pytest
import torch
from hostile import SHIPPED
from torch import nn

from scm_core import cache, checkpoint, classifier
from scm_core.errors import UserError
from scm_core.files import write_text


def judge(path):
    batches = iter([(torch.ones(2, 9000), torch.tensor([0, 1]))])
    classifier.trained(lambda: nn.Linear(9000, 2), batches, 1, 0.1, "judge", path.parent)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 9000),
        lambda path: checkpoint.shrink(SHIPPED, path),
        lambda path: judge(path),
    ],
)
def test_a_full_disk_is_one_sentence(tmp_path, write):
    """As far as a limit on the size of files is a full disk."""
    path = cache.place(tmp_path, "judge")
    path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {path}: .*File too large"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
