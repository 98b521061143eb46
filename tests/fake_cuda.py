"""A CUDA device for tests that is not there: its tensors have a shape and a dtype and no data.

Autocast acts on them as it does on a card, and `RefusesMixedDtypes` adds what only a card's kernels
say. There is no backward, for autograd wants a device.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from scm_core.dual import jvp

aten = torch.ops.aten

STRICT = {aten.lerp, aten.lerp_}  # tagged pointwise, yet they want one dtype
PROMOTES = {  # beside the pointwise operations
    aten.cat,  # to the widest of its tensors
    aten.stack,
    aten.copy_,  # casts to the dtype of its target
    aten.masked_fill,  # casts a value without dimensions
    aten.masked_fill_,
}
OWN = {  # arguments whose dtype is their own
    # Statistics of a half-precision tensor are in single precision (those of group norm are not).
    aten.native_layer_norm_backward: ("mean", "rstd"),
    aten._fused_rms_norm_backward: ("rstd",),
    # The one norm that takes half precision by parameters in single precision.
    aten.native_batch_norm: ("input",),
    aten.cudnn_batch_norm: ("input",),
}


class MixedDtypes(RuntimeError):
    """What a card's kernels would refuse."""


class RefusesMixedDtypes(TorchDispatchMode):
    """Raises where one operation gets floating-point tensors of several dtypes.

    CUDA's kernels read them all as one type; the shape rules of fake tensors let a mixture pass.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # half of all calls: be quick about it
            return args[0].fake_device
        for group in _alike(func, args, kwargs):
            tensors = [x for x in pytree.tree_leaves(group) if isinstance(x, Tensor)]
            dtypes = {x.dtype for x in tensors if x.dtype.is_floating_point}
            if len(dtypes) > 1:
                raise MixedDtypes(f"{func} of {' and '.join(sorted(map(str, dtypes)))}")
        return func(*args, **kwargs)


def _alike(func: torch._ops.OpOverload, args: tuple, kwargs: dict) -> Iterable:
    """Groups of arguments; those within a group have to be of one dtype."""
    own = _own(func)
    if own is None:
        return []
    if func.name().startswith("aten::_foreach_"):  # an operation for each place in its lists
        return zip(*(value for value in args if isinstance(value, list | tuple)), strict=True)
    return [[*(value for i, value in enumerate(args) if i not in own), kwargs]]


@cache
def _own(func: torch._ops.OpOverload) -> set[int] | None:
    """Which arguments have a dtype of their own; None where all may."""
    packet = func.overloadpacket
    pointwise = torch.Tag.pointwise in func.tags and packet not in STRICT
    if pointwise or packet in PROMOTES:
        return None
    names = [argument.name for argument in func._schema.arguments]
    return {names.index(name) for name in OWN.get(packet, ())}


class FakeCUDA(FakeTensorMode):
    """Tensors on CUDA are fake; those on the CPU are real, as the times that a sampler reads."""

    avoid_device_init = True  # else asked of the driver again and again

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if FakeTensor in types or torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **kwargs)


_DEVICE = FakeCUDA(allow_non_fake_inputs=True)  # one, so that tensors may outlive a block


@contextmanager
def fake_cuda(autocast: torch.dtype, guarded: bool = True) -> Iterator[None]:
    """Within it there is a device "cuda", with autocast to a dtype switched on.

    torch.compile looks away from what is `guarded` by a mode of ours.
    """
    answers = {
        # Without a card, torch.autocast("cuda") would switch itself off.
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_bf16_supported": lambda: True,
        "torch.cuda.current_device": lambda: 0,
        # Numbers that nobody draws have no state to restore.
        "torch.cuda.get_rng_state": lambda device=None: torch.empty(0),
        "torch.cuda.set_rng_state": lambda state, device=None: None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, answer))
        stack.enter_context(_DEVICE)
        if guarded:
            stack.enter_context(RefusesMixedDtypes())
        stack.enter_context(torch.autocast("cuda", autocast))
        yield


def draw(*shape, dtype=torch.float32):
    return torch.rand(shape, device="cuda").to(dtype)


def assert_like_plain(function, *primals, **given):
    plain = function(*primals, **given)
    out, tangent = jvp(function, primals, tuple(map(torch.ones_like, primals)), **given)
    for value in (out, tangent):
        assert (value.dtype, value.shape, value.device) == (plain.dtype, plain.shape, plain.device)
    assert out.requires_grad == plain.requires_grad and not tangent.requires_grad
