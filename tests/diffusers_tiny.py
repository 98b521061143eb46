"""A tiny network of diffusers and how it is called; the tables of them are in two other files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

B = 2
GENERATOR = torch.Generator().manual_seed(0)
TEXT = torch.randn(B, 4, 8, generator=GENERATOR)
LONG = torch.randn(B, 16, 8, generator=GENERATOR)
POOLED = torch.randn(B, 8, generator=GENERATOR)
WIDE = torch.randn(B, 4, 32, generator=GENERATOR)
MASK = torch.ones(B, 4)
LABELS = torch.tensor([0, 1])
IMAGE, VIDEO, TOKENS = (B, 4, 8, 8), (B, 4, 2, 8, 8), (B, 16, 4)
HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
IN_OUT = {"in_channels": 4, "out_channels": 4}


@dataclass(frozen=True)
class Tiny:
    """A tiny network: its class's name, its config, the shape of x, and its other arguments."""

    name: str
    shape: tuple[int, ...]
    config: dict[str, Any]
    inputs: Callable[[Any, Any], dict[str, Any]]

    def build(self) -> nn.Module:
        """The network in eval mode, with random values where its parameters are all zero."""
        torch.manual_seed(0)
        network = find(self.name)(**self.config).eval()
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        return network

    def arguments(self, x: Any, t: Any) -> dict[str, Any]:
        """Keyword arguments of its forward, floating-point ones in the dtype of x."""

        def cast(value: Any) -> Any:
            if type(value) is Tensor:
                return value.to(x.dtype) if value.is_floating_point() else value
            if isinstance(value, list | tuple):
                return type(value)(map(cast, value))
            return {k: cast(v) for k, v in value.items()} if isinstance(value, dict) else value

        return {key: cast(value) for key, value in self.inputs(x, t).items()}


def find(name: str) -> type[nn.Module]:
    """The class; a few are not exported by diffusers itself."""
    from diffusers.models import transformers, unets

    homes = (diffusers, transformers, unets)
    return next(getattr(home, name) for home in homes if hasattr(home, name))


def first(out: Any) -> Any:
    """The tensor of a network's output, where it is a list of samples one tensor of them."""
    out = out.to_tuple() if hasattr(out, "to_tuple") else out
    out = out[0] if isinstance(out, tuple) else out
    return torch.stack(out) if isinstance(out, list) else out


def table() -> tuple[dict[str, Tiny], Callable[..., None]]:
    """An empty table, and the function that adds a row: name (a variant behind `+`), shape, ..."""
    networks: dict[str, Tiny] = {}

    def add(name: str, shape: tuple[int, ...], inputs: Callable[..., Any], **config: Any) -> None:
        networks[name] = Tiny(name.partition("+")[0], shape, config, inputs)

    return networks, add


def text(x: Any, t: Any, **more: Any) -> dict[str, Any]:
    """Inputs of most transformers: the time as 1000 t and the embeddings of a text."""
    return dict(hidden_states=x, timestep=1000 * t, encoder_hidden_states=TEXT, **more)


def masked(x: Any, t: Any, **more: Any) -> dict[str, Any]:
    """The same with the mask of the text."""
    return text(x, t, encoder_attention_mask=MASK.bool(), **more)


def packed(x: Any, t: Any, axes: int = 3, **more: Any) -> dict[str, Any]:
    """Inputs of FLUX and its kin: packed latents, positions in image and text, the time as t."""
    positions = {"img_ids": ids(16, axes).float(), "txt_ids": torch.zeros(4, axes)}
    return {**text(x, t), "timestep": t, **positions, **more}


def ids(tokens: int, axes: int = 3) -> Tensor:
    return torch.stack([torch.arange(tokens) % (3 + i) for i in range(axes)], -1)


def rotary(dim: int, length: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(length), 1 / 10000 ** (torch.arange(0, dim, 2) / dim))
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()
