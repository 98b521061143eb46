"""Tiny networks of diffusers for images: transformers and U-Nets."""

import torch
from diffusers_tiny import (
    HEADS,
    IMAGE,
    IN_OUT,
    LABELS,
    LONG,
    MASK,
    POOLED,
    TEXT,
    TOKENS,
    WIDE,
    B,
    ids,
    masked,
    packed,
    rotary,
    table,
    text,
)  # fmt: skip

IMAGES, add = table()

# fmt: off
DIT = dict(in_channels=4, num_layers=1, sample_size=8, patch_size=2, **HEADS)
SANA = dict(IN_OUT, num_attention_heads=2, attention_head_dim=12, num_layers=1, sample_size=8,
            num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24,
            caption_channels=8)
FLUX = dict(HEADS, in_channels=4, num_layers=1, num_single_layers=1, joint_attention_dim=8,
            axes_dims_rope=(4, 4, 8))
FLUX2 = FLUX | dict(axes_dims_rope=(4, 4, 4, 4))
QWEN = dict(HEADS, in_channels=16, out_channels=4, joint_attention_dim=8, axes_dims_rope=(4, 4, 8))
COG = dict(IN_OUT, num_layers=1, attention_head_dim=16, num_attention_heads=2, text_embed_dim=8,
           time_embed_dim=16, condition_dim=4)
UNET = dict(sample_size=8, layers_per_block=1, block_out_channels=(32, 32), norm_num_groups=8)
SIZES = dict(original_size=torch.full((B, 2), 8.0), target_size=torch.full((B, 2), 8.0),
             crop_coords=torch.zeros(B, 2))


def classes(x, t):
    return dict(hidden_states=x, timestep=1000 * t, class_labels=LABELS)


def qwen(x, t):
    return text(x, t) | dict(timestep=t, encoder_hidden_states_mask=MASK.long(),
                             img_shapes=[[(1, 4, 4)]] * B)


def sample(x, t, **more):
    return dict(sample=x, timestep=1000 * t, **more)


add("DiTTransformer2DModel", IMAGE, classes, num_embeds_ada_norm=10, **DIT)
add("Transformer2DModel", IMAGE, classes, num_embeds_ada_norm=10, norm_type="ada_norm_zero",
    attention_bias=True, norm_elementwise_affine=False, **DIT)
add("PixArtTransformer2DModel", IMAGE,
    lambda x, t: text(x, t, added_cond_kwargs=dict(resolution=None, aspect_ratio=None)),
    cross_attention_dim=32, caption_channels=8, use_additional_conditions=False, **DIT)
add("HunyuanDiT2DModel", IMAGE,
    lambda x, t: text(x, t, text_embedding_mask=MASK, encoder_hidden_states_t5=TEXT,
                      text_embedding_mask_t5=MASK, image_meta_size=torch.full((B * 6,), 8.0),
                      style=LABELS * 0, image_rotary_emb=rotary(16, 16)),
    cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=8, hidden_size=32,
    text_len=4, text_len_t5=4, **DIT | dict(num_layers=2))
add("SanaTransformer2DModel", IMAGE, text, **SANA)
add("SanaTransformer2DModel+sprint", IMAGE,
    lambda x, t: text(x, t / 1000, guidance=torch.full((B,), 0.45), encoder_attention_mask=MASK),
    qk_norm="rms_norm_across_heads", guidance_embeds=True, **SANA)
add("SD3Transformer2DModel", IMAGE, lambda x, t: text(x, t, pooled_projections=POOLED),
    joint_attention_dim=8, caption_projection_dim=32, pooled_projection_dim=8, out_channels=4,
    pos_embed_max_size=8, qk_norm="rms_norm", **DIT | dict(num_layers=2))
add("FluxTransformer2DModel", TOKENS, lambda x, t: packed(x, t, pooled_projections=POOLED),
    pooled_projection_dim=8, **FLUX)
add("Flux2Transformer2DModel", TOKENS, lambda x, t: packed(x, t, 4), guidance_embeds=False, **FLUX2)
add("Flux3Transformer2DModel", TOKENS,
    lambda x, t: packed(x, t, 4),
    cond_in_channels=4, timestep_channels=16, **FLUX2)
add("BriaTransformer2DModel", TOKENS, packed, **FLUX)
add("BriaFiboTransformer2DModel", TOKENS,
    lambda x, t: packed(x, t, text_encoder_layers=[WIDE[..., :16]] * 2),
    text_encoder_dim=16, **FLUX)
add("BriaFibo2Transformer2DModel", IMAGE,
    lambda x, t: text(x, t / 1000) | dict(encoder_hidden_states=LONG.view(B, 2, 8, 8)),
    in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, cap_feat_dim=8,
    injection_layer_ids=(0,), perceiver_num_layers=1, min_num_gist_tokens=2, max_num_gist_tokens=4,
    gist_step=1, gist_min_text_len=2, gist_max_text_len=8, axes_dims=(4, 4, 8),
    axes_lens=(64, 64, 64))
add("ChromaTransformer2DModel", TOKENS, packed, approximator_num_channels=8,
    approximator_hidden_dim=16, approximator_layers=1, **FLUX)
add("LongCatImageTransformer2DModel", TOKENS, packed, pooled_projection_dim=8, **FLUX)
add("OvisImageTransformer2DModel", TOKENS, packed, out_channels=4, **FLUX)
add("QwenImageTransformer2DModel", (B, 16, 16), qwen, num_layers=1, **QWEN)
add("QwenImage21Transformer2DModel", TOKENS,
    lambda x, t: text(x, t / 1000, img_shapes=[[(1, 4, 4)]] * B,
                      img_mask=torch.tensor([[False] * 4 + [True] * 4]).expand(B, 8)),
    num_layers=1, context_in_dim=8, axes_dims_rope=(4, 4, 8), **IN_OUT, **HEADS)
add("NucleusMoEImageTransformer2DModel", (B, 16, 16), qwen, num_layers=4, num_experts=4,
    moe_intermediate_dim=16, capacity_factors=2.0, **QWEN)
add("ZImageTransformer2DModel", (B, 4, 1, 8, 8),
    lambda x, t: dict(x=[x[i] for i in range(B)], t=t, cap_feats=[LONG[i, :8] for i in range(B)]),
    in_channels=4, dim=64, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8,
    axes_dims=[8, 12, 12], axes_lens=[64, 64, 64])
add("Lumina2Transformer2DModel", IMAGE, lambda x, t: masked(x, t / 1000), sample_size=8,
    in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=3,
    num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2), axes_lens=(64, 64, 64), cap_feat_dim=8)
add("LuminaNextDiT2DModel", IMAGE,
    lambda x, t: dict(hidden_states=x, timestep=t, encoder_hidden_states=TEXT, encoder_mask=MASK,
                      image_rotary_emb=torch.polar(torch.ones(4, 4, 6), rotary(6, 16)[0].view(
                          4, 4, 6)), cross_attention_kwargs={}),
    sample_size=8, in_channels=4, hidden_size=24, num_layers=1, num_attention_heads=2,
    num_kv_heads=1, multiple_of=8, cross_attention_dim=8)
add("PRXTransformer2DModel", IMAGE, lambda x, t: text(x, t / 1000), in_channels=4, patch_size=2,
    context_in_dim=8, hidden_size=32, num_heads=2, depth=1, axes_dim=[8, 8])
add("AuraFlowTransformer2DModel", IMAGE, lambda x, t: text(x, t / 1000), sample_size=8,
    num_mmdit_layers=1, num_single_dit_layers=1, joint_attention_dim=8, caption_projection_dim=32,
    pos_embed_max_size=64, **IN_OUT, **HEADS)
add("CogView3PlusTransformer2DModel", IMAGE, lambda x, t: text(x, t, **SIZES), sample_size=8,
    pos_embed_max_size=8, **COG)
add("CogView4Transformer2DModel", IMAGE, lambda x, t: text(x, t, **SIZES),
    rope_axes_dim=(8, 8), **COG)
add("GlmImageTransformer2DModel", IMAGE,
    lambda x, t: text(x, t, prior_token_id=ids(16, 1).mT.expand(B, 16),
                      prior_token_drop=torch.tensor([False, True]),
                      **{key: SIZES[key] for key in ("target_size", "crop_coords")}),
    prior_vq_quantizer_codebook_size=8, **COG)
add("HiDreamImageTransformer2DModel", IMAGE,
    lambda x, t: dict(hidden_states=x, timesteps=1000 * t, encoder_hidden_states_t5=TEXT,
                      encoder_hidden_states_llama3=torch.stack([TEXT, TEXT + 1]),
                      pooled_embeds=POOLED),
    patch_size=2, num_layers=1, num_single_layers=1, caption_channels=[8, 8], text_emb_dim=8,
    axes_dims_rope=(4, 4, 8), max_resolution=(8, 8), llama_layers=[0, 1], **IN_OUT, **HEADS)
add("HunyuanImageTransformer2DModel", IMAGE, masked, patch_size=(2, 2), num_layers=1,
    num_single_layers=1, num_refiner_layers=1, text_embed_dim=8, rope_axes_dim=(8, 8),
    **IN_OUT, **HEADS)
add("ErnieImageTransformer2DModel", IMAGE,
    lambda x, t: dict(hidden_states=x, timestep=1000 * t, text_bth=TEXT,
                      text_lens=torch.tensor([4, 3])),
    hidden_size=32, num_attention_heads=2, num_layers=1, ffn_hidden_size=32, text_in_dim=8,
    rope_axes_dim=(4, 4, 8), **IN_OUT)
add("Ideogram4Transformer2DModel", TOKENS,
    lambda x, t: dict(hidden_states=torch.cat([torch.zeros(B, 4, 4), x], 1), timestep=t,
                      encoder_hidden_states=torch.cat([TEXT, torch.zeros(B, 16, 8)], 1),
                      position_ids=ids(20).expand(B, 20, 3), segment_ids=torch.ones(B, 20).long(),
                      indicator=torch.tensor([3] * 4 + [2] * 16).expand(B, 20)),
    in_channels=4, num_layers=1, intermediate_size=32, adaln_dim=8, llm_features_dim=8,
    mrope_section=(4, 2, 2), **HEADS)
add("Krea2Transformer2DModel", TOKENS,
    lambda x, t: dict(hidden_states=x, timestep=t, position_ids=ids(20).float(),
                      encoder_hidden_states=torch.stack([WIDE, WIDE + 1], 2)),
    in_channels=4, num_layers=1, num_key_value_heads=1, intermediate_size=32, timestep_embed_dim=16,
    text_hidden_dim=32, num_text_layers=2, text_num_attention_heads=2, text_num_key_value_heads=2,
    text_intermediate_size=32, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
    axes_dims_rope=(4, 4, 8), **HEADS)
add("OmniGenTransformer2DModel", IMAGE,
    lambda x, t: dict(hidden_states=x, timestep=t, input_ids=ids(4, 1).mT.expand(B, 4),
                      input_img_latents=[], input_image_sizes={},
                      attention_mask=torch.ones(B, 21, 21).long(),
                      position_ids=torch.arange(21).expand(B, 21)),
    in_channels=4, hidden_size=32, num_attention_heads=2, num_key_value_heads=2,
    intermediate_size=32, num_layers=1, pad_token_id=0, vocab_size=8, max_position_embeddings=64,
    original_max_position_embeddings=64, pos_embed_max_size=8, time_step_dim=16,
    rope_scaling=dict(long_factor=[1.0] * 8, short_factor=[1.0] * 8))
add("JoyImageEditTransformer3DModel", (B, 4, 1, 8, 8), text, hidden_size=32, num_attention_heads=2,
    text_dim=8, num_layers=1, rope_dim_list=[4, 4, 8], **IN_OUT)
add("JoyImageEditPlusTransformer3DModel", (B, 16, 4, 1, 2, 2),
    lambda x, t: text(x, t, encoder_hidden_states_mask=MASK, shape_list=[[(1, 4, 4)]] * B),
    hidden_size=32, num_attention_heads=2, text_dim=8, num_layers=1, rope_dim_list=[4, 4, 8],
    **IN_OUT)
add("PriorTransformer", (B, 8),
    lambda x, t: dict(hidden_states=x, timestep=1000 * t, proj_embedding=POOLED,
                      encoder_hidden_states=TEXT, attention_mask=MASK.bool()),
    num_layers=1, embedding_dim=8, num_embeddings=4, **HEADS)
add("DreamLiteTransformer2DModel", (B, 32, 8, 8),
    lambda x, t: dict(hidden_states=x * (1 + t.view(B, 1, 1, 1)), encoder_hidden_states=TEXT),
    in_channels=32, norm_num_groups=8, cross_attention_dim=8, qk_norm="rms_norm",
    **HEADS)

add("UNet2DModel", (B, 3, 8, 8), sample, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"), **UNET)
add("UNet2DModel+skip", (B, 3, 8, 8), sample,
    down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"), **UNET)
add("UNet2DConditionModel", IMAGE, lambda x, t: sample(x, t, encoder_hidden_states=TEXT),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=8,
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, **UNET)
add("UNet2DConditionModel+xl", IMAGE,
    lambda x, t: sample(x, t, encoder_hidden_states=TEXT, added_cond_kwargs=dict(
        text_embeds=POOLED, time_ids=torch.ones(B, 6))),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=8,
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    addition_embed_type="text_time", addition_time_embed_dim=8, use_linear_projection=True,
    projection_class_embeddings_input_dim=56, **UNET)
add("DreamLiteUNetModel", IMAGE, lambda x, t: sample(x, t, encoder_hidden_states=TEXT),
    down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
    up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"), cross_attention_dim=8,
    attention_head_dim=8, ff_mult=2, **UNET)
add("Kandinsky3UNet", IMAGE,
    lambda x, t: sample(x, t, encoder_hidden_states=TEXT, encoder_attention_mask=MASK),
    time_embedding_dim=16, groups=2, attention_head_dim=8, layers_per_block=2,
    block_out_channels=(16, 32, 64, 128), cross_attention_dim=8, encoder_hid_dim=8)
add("StableCascadeUNet", IMAGE,
    lambda x, t: dict(sample=x, timestep_ratio=t, clip_text_pooled=POOLED[:, None]),
    timestep_ratio_embedding_dim=8, conditioning_dim=16, block_out_channels=(16, 16),
    num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1),
    clip_text_pooled_in_channels=8, **IN_OUT)
