"""How each class of networks in diffusers is called: one row a class.

A row says what the class calls its sample, its time, its tokens; how it lays a sample out; and what
else its pipeline hands it. What its output means is the scheduler's to say (`folder.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scm_core.base.errors import UserError


class Given(NamedTuple):
    """What a network is asked about: samples x (B, C, *grid) and its own time (B,), with tokens
    (B, length, width), which of them there are, bool (B, length), and the pooled vector
    (B, pooled), or with labels, int64 (B,).

    `factor` is how many pixels a cell of the grid has a side, `scheduler` the pipeline's config."""

    x: Tensor
    time: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    label: Tensor | None = None
    factor: int = 1
    scheduler: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Layout:
    """Between samples x (B, C, *grid) and what a network takes; `unfold` gets x for its shape."""

    fold: Callable[[Tensor], Any] = lambda x: x
    unfold: Callable[[Any, Tensor], Tensor] = lambda out, x: out


def _pack(x: Tensor) -> Tensor:
    """2 x 2 cells as one token, (B, H/2 * W/2, 4 C), channels outermost."""
    x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B C H 2 W 2
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _unpack(out: Tensor, x: Tensor) -> Tensor:
    out = out.unflatten(2, (-1, 2, 2)).unflatten(1, (x.shape[2] // 2, x.shape[3] // 2))
    return out.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _uncell(out: Tensor, x: Tensor) -> Tensor:
    return out.transpose(1, 2).unflatten(2, tuple(x.shape[2:]))


def _one_frame(x: Tensor) -> list[Tensor]:
    return list(x.unsqueeze(2).unbind(0))


PACKED = Layout(_pack, _unpack)
CELLS = Layout(lambda x: x.flatten(2).transpose(1, 2), _uncell)  # a token a cell
FRAMES_FIRST = Layout(lambda x: x.transpose(1, 2), lambda out, x: out.transpose(1, 2))
LIST = Layout(_one_frame, lambda out, x: torch.stack(list(out)).squeeze(2))


@dataclass(frozen=True)
class Family:
    """A class of diffusers: the names of its arguments, None for what it has not.

    `unit_time` is one that wants u in [0, 1] and not a number of steps; `reversed` counts from
    noise and predicts minus the velocity. It is told `clock(network, given)` of its time, and
    `more(network, given)` are its other arguments. `outside` are modules that it calls from outside
    of the blocks that they are in.
    """

    sample: str = "hidden_states"
    tokens: str | None = "encoder_hidden_states"
    mask: str | None = None
    pooled: str | None = None
    label: str | None = None
    time: str = "timestep"
    unit_time: bool = False
    reversed: bool = False
    layout: Layout = field(default_factory=Layout)
    outside: tuple[str, ...] = ()
    clock: Callable[[nn.Module, Given], Tensor] = lambda network, given: given.time
    more: Callable[[nn.Module, Given], dict[str, Any]] = lambda network, given: {}

    def __call__(self, network: nn.Module, given: Given) -> Tensor:
        """What the network says, in the layout of the given x."""
        named = {key: getattr(self, key) for key in ("tokens", "mask", "pooled", "label")}
        found = {name: getattr(given, key) for key, name in named.items() if name}
        found[self.sample] = self.layout.fold(given.x)
        found[self.time] = self.clock(network, given)
        out = network(**found | self.more(network, given), return_dict=False)[0]
        return self.layout.unfold(out, given.x)


def _ids(*sizes: int, columns: int, first: int, device: Any) -> Tensor:
    """The coordinates of each cell of a grid, in columns from `first` on; the others are 0."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in sizes]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    return nn.functional.pad(grid, (first, columns - first - len(sizes)))


def _size(given: Given) -> Tensor:
    """Height and width in pixels, (B, 2)."""
    sides = [float(size * given.factor) for size in given.x.shape[-2:]]
    return torch.tensor(sides, device=given.x.device).expand(given.x.shape[0], 2)


def _guidance(network: nn.Module, given: Given, scale: float) -> dict[str, Any]:
    """Of a network that was distilled at a range of guidances: its pipeline's own."""
    if not network.config.get("guidance_embeds"):
        return {}
    return {"guidance": torch.full((given.x.shape[0],), scale, device=given.x.device)}


def _pixart(network: nn.Module, given: Given) -> dict[str, Any]:
    size = _size(given)
    known = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
    used = network.config.use_additional_conditions
    if used is None:  # as the class itself decides
        used = network.config.sample_size == 128
    return {"added_cond_kwargs": known if used else dict.fromkeys(known)}


def _sana(network: nn.Module, given: Given) -> dict[str, Any]:
    return _guidance(network, given, 4.5 * network.config.get("guidance_embeds_scale", 0.1))


def _flux(network: nn.Module, given: Given) -> dict[str, Any]:
    (height, width), device = given.x.shape[2:], given.x.device
    texts = torch.zeros(given.tokens.shape[1], 3, device=device)
    cells = _ids(height // 2, width // 2, columns=3, first=1, device=device)
    return {"img_ids": cells, "txt_ids": texts, **_guidance(network, given, 3.5)}


def _flux2(network: nn.Module, given: Given) -> dict[str, Any]:
    device = given.x.device
    cells = _ids(*given.x.shape[2:], columns=4, first=1, device=device)
    texts = _ids(given.tokens.shape[1], columns=4, first=3, device=device)
    return {"img_ids": cells, "txt_ids": texts, **_guidance(network, given, 4.0)}


def _qwen(network: nn.Module, given: Given) -> dict[str, Any]:
    height, width = given.x.shape[2:]
    return {"img_shapes": [[(1, height // 2, width // 2)]] * len(given.x)}


def _z_image(network: nn.Module, given: Given) -> dict[str, Any]:
    """Each sample's own tokens, of which it must have one."""
    there = [max(1, int(count)) for count in given.mask.sum(1)]
    return {"cap_feats": [row[:n] for row, n in zip(given.tokens, there, strict=True)]}


def _before_shift(network: nn.Module, given: Given) -> Tensor:
    """The time before the scheduler's shift, which the sample has behind it."""
    scheduler = given.scheduler
    shift = scheduler.get("shift", 1.0)
    if scheduler.get("use_dynamic_shifting"):
        cells = math.prod(given.x.shape[2:]) // network.config.patch_size**2
        grown = (cells / scheduler.get("base_image_seq_len", 256)) ** 0.5
        shift = grown * scheduler.get("max_shift", 0.75) + scheduler.get("base_shift", 0.25)
        shift = shift if scheduler.get("time_shift_type") == "linear" else math.exp(shift)
    steps = scheduler.get("num_train_timesteps", 1000)
    return given.time / (shift + (1 - shift) * given.time / steps)


def _cogview4(network: nn.Module, given: Given) -> dict[str, Any]:
    size = _size(given)
    return {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}


def _ltx(network: nn.Module, given: Given) -> dict[str, Any]:
    """Positions in seconds and pixels, at the pipeline's 25 frames a second, 8 of them a latent."""
    frames, height, width = given.x.shape[2:]
    scale = (8 / 25, given.factor, given.factor)
    sizes = {"num_frames": frames, "height": height, "width": width}
    return {**sizes, "rope_interpolation_scale": scale}


def _cogvideox(network: nn.Module, given: Given) -> dict[str, Any]:
    if network.config.use_rotary_positional_embeddings:
        raise UserError("a CogVideoX with rotary positions is not supported")
    return {}


def _stable_diffusion(network: nn.Module, given: Given) -> dict[str, Any]:
    if network.config.addition_embed_type != "text_time":
        return {}
    size = _size(given)
    ids = torch.cat([size, torch.zeros_like(size), size], 1)  # original, crop, target
    return {"added_cond_kwargs": {"text_embeds": given.pooled, "time_ids": ids}}


MASK = "encoder_attention_mask"
UNET = {"sample": "sample"}

FAMILIES: dict[str, Family] = {
    # Pictures by a class, or by nothing.
    "DiTTransformer2DModel": Family(
        tokens=None, label="class_labels", outside=("transformer_blocks.0.norm1.emb",)
    ),
    "UNet2DModel": Family(**UNET, tokens=None, label="class_labels"),
    # Pictures by a text.
    "AuraFlowTransformer2DModel": Family(unit_time=True),
    "CogView4Transformer2DModel": Family(clock=_before_shift, more=_cogview4),
    "Flux2Transformer2DModel": Family(unit_time=True, layout=CELLS, more=_flux2),
    "FluxTransformer2DModel": Family(
        pooled="pooled_projections", unit_time=True, layout=PACKED, more=_flux
    ),
    "Lumina2Transformer2DModel": Family(mask=MASK, unit_time=True, reversed=True),
    "PixArtTransformer2DModel": Family(mask=MASK, more=_pixart),
    "PRXTransformer2DModel": Family(mask="attention_mask", unit_time=True),
    "QwenImageTransformer2DModel": Family(
        mask="encoder_hidden_states_mask", unit_time=True, layout=PACKED, more=_qwen
    ),
    "SanaTransformer2DModel": Family(mask=MASK, more=_sana),
    "SD3Transformer2DModel": Family(pooled="pooled_projections"),
    "UNet2DConditionModel": Family(**UNET, more=_stable_diffusion),
    "ZImageTransformer2DModel": Family(
        sample="x", tokens=None, time="t", unit_time=True, reversed=True, layout=LIST, more=_z_image
    ),
    # Clips by a text.
    "CogVideoXTransformer3DModel": Family(layout=FRAMES_FIRST, more=_cogvideox),
    "LTXVideoTransformer3DModel": Family(mask=MASK, layout=CELLS, more=_ltx),
    "SanaVideoTransformer3DModel": Family(mask=MASK),
    "WanTransformer3DModel": Family(),
}
