"""The kernel for attention's tangent: in Triton's interpreter against the exact one, and where."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_cuda import fake_cuda
from torch.nn import functional as F

from scm_core.dual import Dual, flash

BARS = [  # of the largest error; single precision alone covers every branch
    ("float32", 1e-5),
    pytest.param("float16", 2e-3, marks=pytest.mark.slow),
    pytest.param("bfloat16", 2e-2, marks=pytest.mark.slow),
]
MEMORY = 227 * 1024  # shared memory of a block on an H100
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize(("dtype", "bar"), BARS)
def test_the_kernel_is_exact_with_every_option(dtype, bar):
    pytest.importorskip("triton")
    command = [sys.executable, Path(__file__).parents[1] / "flash_interpreted.py", dtype]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = dict(map(json.loads, done.stdout.splitlines()))
    worst = max(errors, key=errors.get)
    print(f"{dtype}: {errors[worst]:.1e} at most, of {len(errors)} cases in: {worst}")
    assert len(errors) > 30
    assert not {case: error for case, error in errors.items() if not error <= bar}


@pytest.mark.parametrize("width", [32, 40, 64, 96, 128, 256])
@pytest.mark.parametrize("dtype", flash.DTYPES)
def test_the_best_tile_that_fits_is_taken(dtype, width):
    covers = next(w for w in (64, 128, 256) if w >= width)
    tiles = flash.TILES[dtype.itemsize, covers]
    assert flash.tile(width, dtype, 1 << 30) == tiles[0]
    for tile in tiles:
        assert flash.tile(width, dtype, tile[-1]) == tile
    assert flash.tile(width, dtype, tiles[-1][-1] - 1) is None


def test_a_head_too_wide_or_too_precise_has_no_tile():
    assert flash.tile(257, torch.bfloat16, MEMORY) is None
    assert flash.tile(64, torch.float64, MEMORY) is None


@without_cuda
def test_without_a_device_there_is_no_kernel_and_a_reason():
    pytest.importorskip("triton")
    x = torch.ones(1, 2, 8, 64)
    assert flash.missing() == "there is no CUDA device"
    assert flash.room(0) == 0
    assert not flash.applies(x, x)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(flash, "triton", object())
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, why in (((7, 5), "it needs compute capability 8.0"), ((9, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert flash.missing() == why
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert flash.missing() == "there is no CUDA device"
    monkeypatch.setattr(flash, "triton", None)
    assert flash.missing() == "Triton is not installed"


@pytest.fixture
def card(monkeypatch):
    """A CUDA device that is not there, with the kernel; the arguments of its launches."""
    launches = []

    def tangent(out, *others):
        launches.append((out, *others))
        return torch.empty_like(out)

    monkeypatch.setattr(flash, "room", lambda index: MEMORY)
    monkeypatch.setattr(flash, "tangent", tangent)
    with fake_cuda(torch.bfloat16):
        yield launches


def duals(*shapes):
    return [Dual(*(torch.randn(shape, device="cuda") for _ in range(2))) for shape in shapes]


@without_cuda
def test_a_card_gets_four_dimensions_and_one_dtype(card):
    query, key = duals((3, 5, 4, 8, 40), (3, 5, 2, 9, 40))
    value = torch.randn(5, 2, 9, 40, device="cuda")  # plain, and broadcast
    mask = torch.ones(8, 9, dtype=torch.bool, device="cuda")
    out = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    assert out.tangent.shape == out.primal.shape == (3, 5, 4, 8, 40)
    ((whole, q, k, v, dq, dk, dv, bias, causal, scale),) = card
    assert whole.shape == q.shape == dq.shape == (15, 4, 8, 40)
    assert k.shape == dk.shape == v.shape == (15, 2, 9, 40) and dv is None
    assert {x.dtype for x in (whole, q, k, v, dq, dk)} == {torch.bfloat16}
    assert bias.shape == (15, 4, 8, 9) and bias.dtype == torch.bool
    assert causal is False and scale == 40**-0.5


@without_cuda
def test_a_card_leaves_to_blocks_what_the_kernel_cannot_do(card):
    query, key, value, mask, wide = duals(*[(2, 4, 8, 32)] * 3, (8, 8), (2, 4, 8, 300))
    for given in ((query, key, value, mask), (wide, wide, wide)):
        out = F.scaled_dot_product_attention(*given)
        assert out.tangent.shape == out.primal.shape
    with torch.autocast("cuda", enabled=False):
        precise = Dual(query.primal.double(), query.tangent.double())
        out = F.scaled_dot_product_attention(precise, precise, precise)
    assert out.tangent.dtype == torch.float64
    assert not card


@without_cuda
@pytest.mark.parametrize("width", [16, 64])
def test_a_card_leaves_values_of_another_width_to_blocks(card, width):
    query, key, value = duals((2, 4, 8, 32), (2, 4, 9, 32), (2, 4, 9, width))
    out = F.scaled_dot_product_attention(query, key, value)
    assert out.tangent.shape == (2, 4, 8, width)
    assert not card
