"""Pipelines of diffusers, tiny and untrained, one for each class of networks: what tests read."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")  # as what imports this needs it

LENGTH, WIDTH = 4, 8  # of a text
FLOW = "FlowMatchEulerDiscreteScheduler"
UNET = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (16, 16),
    "norm_num_groups": 8,
}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
DDIM = {"clip_sample": False, "timestep_spacing": "trailing"}


@dataclass
class Case:
    """A class of networks: how to build one, its pipeline and scheduler, its sample's `shape`."""

    options: dict[str, Any]
    pipeline: str
    shape: tuple[int, ...] = (4, 8, 8)
    scheduler: str = FLOW
    of_scheduler: dict[str, Any] = field(default_factory=dict)
    pooled: int = 0
    asked: tuple[str, ...] = ("prompt_embeds",)  # what the pipeline is called with
    call: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    part: str = "transformer"
    kind: str = ""
    factor: int = 8  # pixels a cell, without a vae to say so


MASKED = ("prompt_embeds", "prompt_attention_mask")
BOTH = (*MASKED, "negative_prompt_embeds", "negative_prompt_attention_mask")
POOLED = ("prompt_embeds", "pooled_prompt_embeds")
NO_BINS = {"guidance_scale": 1.0, "use_resolution_binning": False}
SIZED = {"height": 64, "width": 64}

CASES = {
    "PixArtTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "sample_size": 8, "cross_attention_dim": 16}
        | {"caption_channels": WIDTH, "out_channels": 8},
        "PixArtSigmaPipeline",
        scheduler="DDIMScheduler",
        of_scheduler=DDIM,
        asked=MASKED,
        call=NO_BINS | SIZED,
    ),
    "SanaTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2}
        | {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": WIDTH}
        | {"sample_size": 8},
        "SanaPipeline",
        of_scheduler={"shift": 3.0},
        asked=MASKED,
        call=NO_BINS | {"height": 256, "width": 256},
    ),
    "SD3Transformer2DModel": Case(
        {**HEADS, "sample_size": 8, "in_channels": 4, "joint_attention_dim": WIDTH}
        | {"caption_projection_dim": 16, "pooled_projection_dim": 6, "out_channels": 4}
        | {"pos_embed_max_size": 8, "qk_norm": "rms_norm"},
        "StableDiffusion3Pipeline",
        of_scheduler={"shift": 3.0},
        pooled=6,
        asked=POOLED,
        call={"guidance_scale": 1.0, **SIZED},
    ),
    "FluxTransformer2DModel": Case(
        {**HEADS, "in_channels": 16, "num_single_layers": 1, "attention_head_dim": 16}
        | {"joint_attention_dim": WIDTH, "pooled_projection_dim": 6, "axes_dims_rope": (4, 4, 8)}
        | {"guidance_embeds": True},
        "FluxPipeline",
        of_scheduler={"use_dynamic_shifting": True},
        pooled=6,
        asked=POOLED,
        call=SIZED,  # at its own guidance
    ),
    "Flux2Transformer2DModel": Case(
        {**HEADS, "in_channels": 4, "num_single_layers": 1, "attention_head_dim": 16}
        | {"joint_attention_dim": WIDTH, "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False},
        "Flux2KleinPipeline",
        (4, 4, 4),
        of_scheduler={"use_dynamic_shifting": True},
        call={"guidance_scale": 1.0, **SIZED},
    ),
    "QwenImageTransformer2DModel": Case(
        {**HEADS, "in_channels": 16, "out_channels": 4, "attention_head_dim": 16}
        | {"joint_attention_dim": WIDTH, "axes_dims_rope": (4, 4, 8)},
        "QwenImagePipeline",
        of_scheduler={"use_dynamic_shifting": True},
        asked=("prompt_embeds", "prompt_embeds_mask"),
        call={"true_cfg_scale": 1.0, **SIZED},
    ),
    "ZImageTransformer2DModel": Case(
        {"in_channels": 4, "dim": 64, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2}
        | {"n_kv_heads": 2, "cap_feat_dim": WIDTH, "axes_dims": [8, 12, 12]}
        | {"axes_lens": [64, 64, 64]},
        "ZImagePipeline",
        of_scheduler={"shift": 3.0},
        call={"guidance_scale": 0.0, **SIZED},
    ),
    "Lumina2Transformer2DModel": Case(
        {"sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 1}
        | {"num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 8}
        | {"axes_dim_rope": (4, 2, 2), "axes_lens": (64, 64, 64), "cap_feat_dim": WIDTH},
        "Lumina2Pipeline",
        of_scheduler={"shift": 6.0},
        asked=MASKED,
        call={"guidance_scale": 1.0, **SIZED},
    ),
    "AuraFlowTransformer2DModel": Case(
        {"sample_size": 8, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
        | {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": WIDTH}
        | {"caption_projection_dim": 16, "out_channels": 4, "pos_embed_max_size": 64},
        "AuraFlowPipeline",
        of_scheduler={"shift": 1.73},
        asked=BOTH,
        call={"guidance_scale": 1.0, **SIZED},
    ),
    "CogView4Transformer2DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "text_embed_dim": WIDTH}
        | {"time_embed_dim": 16, "condition_dim": 4, "rope_axes_dim": (8, 8)},
        "CogView4Pipeline",
        of_scheduler={"use_dynamic_shifting": True, "time_shift_type": "linear"},
        call={"guidance_scale": 1.0, **SIZED},
    ),
    "PRXTransformer2DModel": Case(
        {"in_channels": 4, "patch_size": 2, "context_in_dim": WIDTH, "hidden_size": 32}
        | {"num_heads": 2, "depth": 1, "axes_dim": [8, 8]},
        "PRXPipeline",
        of_scheduler={"shift": 3.0},
        asked=BOTH,
        call=NO_BINS | SIZED,
    ),
    "UNet2DConditionModel": Case(
        {**UNET, "cross_attention_dim": WIDTH, "attention_head_dim": 8}
        | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
        | {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
        "StableDiffusionPipeline",
        scheduler="DDIMScheduler",
        of_scheduler={**DDIM, "beta_schedule": "scaled_linear", "beta_start": 0.00085}
        | {"beta_end": 0.012, "prediction_type": "v_prediction"},
        call={"guidance_scale": 1.0, **SIZED},
        part="unet",
    ),
    "UNet2DConditionModel of SDXL": Case(
        {**UNET, "cross_attention_dim": WIDTH, "attention_head_dim": 8}
        | {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
        | {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
        | {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
        | {"projection_class_embeddings_input_dim": 30},
        "StableDiffusionXLPipeline",
        scheduler="EulerDiscreteScheduler",
        pooled=6,
        asked=POOLED,
        call={"guidance_scale": 1.0, **SIZED},
        part="unet",
        kind="UNet2DConditionModel",
    ),
    "DiTTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "sample_size": 8, "num_embeds_ada_norm": 10}
        | {"out_channels": 8},
        "DiTPipeline",
        scheduler="DDIMScheduler",
        of_scheduler=DDIM,
        asked=("class_labels",),
    ),
    "UNet2DModel": Case(
        {**UNET, "in_channels": 3, "out_channels": 3}
        | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
        | {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
        "DDIMPipeline",
        (3, 8, 8),
        scheduler="DDIMScheduler",
        of_scheduler=DDIM,
        asked=(),
        call={},
        part="unet",
    ),
    "LTXVideoTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16}
        | {"caption_channels": WIDTH},
        "LTXPipeline",
        (4, 2, 4, 4),
        of_scheduler={"use_dynamic_shifting": True, "shift_terminal": 0.1},
        asked=MASKED,
        call={"guidance_scale": 1.0, "height": 128, "width": 128, "num_frames": 9},
        factor=32,
    ),
    "WanTransformer3DModel": Case(
        {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
        | {"text_dim": WIDTH, "freq_dim": 16, "ffn_dim": 32, "num_layers": 1}
        | {"rope_max_seq_len": 32},
        "WanPipeline",
        (4, 2, 8, 8),
        call={"guidance_scale": 1.0, **SIZED, "num_frames": 5},
    ),
    "SanaVideoTransformer3DModel": Case(
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12}
        | {"num_layers": 1, "num_cross_attention_heads": 2, "cross_attention_head_dim": 12}
        | {"cross_attention_dim": 24, "caption_channels": WIDTH, "rope_max_seq_len": 32},
        "SanaVideoPipeline",
        (4, 2, 8, 8),
        asked=MASKED,
        call=NO_BINS | SIZED | {"frames": 5},
    ),
    "CogVideoXTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8}
        | {"text_embed_dim": WIDTH, "sample_width": 8, "sample_height": 8, "sample_frames": 5}
        | {"max_text_seq_length": LENGTH},
        "CogVideoXPipeline",
        (4, 2, 8, 8),
        scheduler="DDIMScheduler",
        of_scheduler=DDIM,
        call={"guidance_scale": 1.0, **SIZED, "num_frames": 5},
    ),
}


def build(name: str, **parts: Any) -> Any:
    """A pipeline by its case's name, with a random network whose zero weights are awake."""
    case = CASES[name]
    torch.manual_seed(0)
    network = getattr(diffusers, case.kind or name)(**case.options).eval()
    for parameter in network.parameters():
        if not parameter.abs().sum():
            nn.init.normal_(parameter, std=0.1)
    scheduler = getattr(diffusers, case.scheduler)(**case.of_scheduler)
    kind = getattr(diffusers, case.pipeline)
    signature = kind.__init__.__code__
    names = signature.co_varnames[1 : signature.co_argcount]
    optional = {key: None for key in names if key not in ("transformer", "scheduler", "unet")}
    given = {key: value for key, value in optional.items() if key not in OF_PIPELINES}
    return kind(**given | {case.part: network, "scheduler": scheduler} | parts)


OF_PIPELINES = ("is_distilled", "requires_safety_checker", "default_sample_size", "boundary_ratio")
OF_PIPELINES += ("expand_timesteps", "force_zeros_for_empty_prompt", "add_watermarker", "id2label")


def vae(**more):
    """An autoencoder of pictures, two pixels a cell."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        **more,
    ).eval()
