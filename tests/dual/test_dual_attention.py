"""Attention through Dual: blocks, memory and dropout of the probabilities."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from scm_core.dual import Dual, jvp
from scm_core.dual import attention as attention_rules


def test_attention_dropout_has_one_mask_for_both():
    def attend(v):
        torch.manual_seed(0)
        return F.scaled_dot_product_attention(
            torch.ones(1, 4, 2), torch.ones(1, 4, 2), v, None, 0.5
        )

    v = torch.randn(1, 4, 2)
    out, tangent = jvp(attend, (v,), (v,))  # linear in v
    torch.testing.assert_close(out, attend(v))
    torch.testing.assert_close(tangent, out)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_does_not_depend_on_its_blocks(monkeypatch, causal):
    generator = torch.Generator().manual_seed(0)
    q, k, v, dq, dk, dv = (
        torch.randn(3, 2, 20, 4, generator=generator, dtype=torch.float64) for _ in range(6)
    )

    def tangent(block, rows):
        monkeypatch.setitem(attention_rules.BLOCK, "cpu", block)
        monkeypatch.setattr(attention_rules, "_ROWS", rows)

        def attend(*qkv):
            return F.scaled_dot_product_attention(*qkv, is_causal=causal)

        return jvp(attend, (q, k, v), (dq, dk, dv))[1]

    whole = tangent(1 << 20, 64)
    for block, rows in ((1, 1), (100, 3), (300, 7), (1600, 64)):
        torch.testing.assert_close(tangent(block, rows), whole, rtol=1e-12, atol=1e-13)


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that an operation returned."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.size = max(self.size, leaf.numel())
        return out


def test_attention_memory_is_linear():
    def largest(tokens):
        qkv = [Dual(torch.randn(1, 1, tokens, 8), torch.randn(1, 1, tokens, 8)) for _ in range(3)]
        with LargestTensor() as mode:
            F.scaled_dot_product_attention(*qkv)
        return mode.size

    assert largest(8192) <= 2 * largest(4096) < 4096**2
