"""The tangents of what was written in place, kept beside the memory that it was written to.

Tangents share memory where their primals do not (`x + 1` has the tangent of `x`), and the reverse
(`reshape` may copy one and view the other). So nothing is ever written into a tangent: a write goes
into the primal, as torch does it, and its tangent into a *shadow* of the primal's storage. Whatever
reads that storage later, through whichever view, base or plain tensor, finds its tangent there.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.overrides import _get_current_function_mode_stack as _modes

SHADOWS: set[weakref.ref] = set()
"""The shadows there are. While it is empty, which is nearly always, nothing need be looked up."""
_ATTRIBUTE = "_scm_core_shadow"  # of a storage, so that a shadow lives no longer than its memory


class DualError(Exception):
    """An operation that `Dual` cannot differentiate; the message names it and what to do."""


class _Local(threading.local):
    shadows: list[weakref.ref] | None = None  # of this thread's `scope`
    watch: TorchFunctionMode | None = None
    busy: bool = False


_local = _Local()


class Shadow:
    """The tangent of each element of a storage, and whether it was written."""

    def __init__(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        size = storage.nbytes() // x.element_size()
        self.tangent = torch.zeros(size, dtype=x.dtype, device=x.device)
        self.written = torch.zeros(size, dtype=torch.bool, device=x.device)
        self.reference = weakref.ref(self, SHADOWS.discard)
        SHADOWS.add(self.reference)
        setattr(storage, _ATTRIBUTE, self)
        if _local.shadows is not None:
            _local.shadows.append(self.reference)

    def at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tangent and mask, views of the shadow that lie as x, which is real, does in its memory.

        Raises DualError where x sees the memory as another dtype.
        """
        if x.dtype != self.tangent.dtype:
            raise DualError(
                f"memory that was written in place as {self.tangent.dtype} is read as {x.dtype}, "
                "which has no tangent: convert with x.to(dtype), not with x.view(dtype)"
            )
        place = (x.shape, x.stride(), x.storage_offset())
        return self.tangent.as_strided(*place), self.written.as_strided(*place)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def shadow(x: Tensor) -> Shadow | None:
    """The shadow of x's memory, if anything was written there."""
    try:
        found = getattr(x.untyped_storage(), _ATTRIBUTE, None)
    except NotImplementedError:  # a sparse tensor has none, nor one that another transform left
        return None
    return None if found is None or found.reference not in SHADOWS else found


@torch.no_grad()
def write(x: Tensor, tangent: Tensor) -> None:
    """Note that x, a tensor that was written in place, has this tangent now."""
    x, tangent = _real(x.detach()), _real(tangent)
    value, written = (shadow(x) or Shadow(x)).at(x)
    value.copy_(tangent)
    written.fill_(True)


@torch.no_grad()
def read(x: Tensor, tangent: Tensor | None = None) -> Tensor:
    """The tangent of x: what was written, and elsewhere what it had, which is `tangent` or zero."""
    value, written = shadow(x).at(_real(x.detach()))
    out = value.clone() if tangent is None else torch.where(written, value, _real(tangent))
    return torch.view_as_complex(out.contiguous()) if x.is_complex() else out


@contextmanager
def scope() -> Iterator[None]:
    """Within, plain tensors can be written, and read again; the shadows end with it."""
    outer = _local.shadows, _local.watch
    _local.shadows, _local.watch = [], None
    try:
        yield
    finally:
        SHADOWS.difference_update(_local.shadows)
        for reference in _local.shadows:
            if (left := reference()) is not None:
                del left.tangent, left.written
        if _local.watch is not None:
            _arrange(lambda modes: [mode for mode in modes if mode is not _local.watch])
        _local.shadows, _local.watch = outer


def watch(mode: type[TorchFunctionMode]) -> bool:
    """Let a mode of this kind see every call until the `scope` ends; whether there is a scope.

    It goes below the modes there are, each of which ends when its own `with` does.
    """
    if _local.shadows is not None and _local.watch is None:
        _local.watch = mode()
        _arrange(lambda modes: [_local.watch, *modes])
    return _local.shadows is not None


def _arrange(order: Any) -> None:
    modes = _modes()
    for _ in modes:
        _pop_mode()
    for mode in order(modes):
        _push_mode(mode)


def busy() -> bool:
    """Whether a rule is at work, whose calls on primals are not the module's."""
    return _local.busy


@contextmanager
def working() -> Iterator[None]:
    """Within, a rule is at work."""
    outer, _local.busy = _local.busy, True
    try:
        yield
    finally:
        _local.busy = outer
