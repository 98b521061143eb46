"""Tiny networks of diffusers for video and sound."""

import torch
from diffusers_tiny import (
    HEADS,
    IN_OUT,
    LONG,
    MASK,
    POOLED,
    TEXT,
    VIDEO,
    B,
    masked,
    rotary,
    table,
    text,
)  # fmt: skip

VIDEOS, add = table()

# fmt: off
WAN = dict(IN_OUT, num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=16,
           ffn_dim=32, num_layers=1)
COG = dict(**IN_OUT, **HEADS, time_embed_dim=8, text_embed_dim=8, num_layers=1, sample_width=8,
           sample_height=8, sample_frames=5, max_text_seq_length=4)
HUNYUAN = dict(**IN_OUT, **HEADS, num_layers=1, num_single_layers=1, num_refiner_layers=1,
               text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(4, 4, 8))
LTX = dict(IN_OUT, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
           num_layers=1, caption_channels=8)
LTX2 = dict(LTX, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
            audio_attention_head_dim=8, audio_cross_attention_dim=16)
SANA = dict(IN_OUT, num_attention_heads=2, attention_head_dim=12, num_layers=1,
            num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24,
            caption_channels=8)
UNET = dict(sample_size=8, layers_per_block=1, block_out_channels=(32, 32), norm_num_groups=8,
            cross_attention_dim=8)
FRAMES = (B, 2, 4, 8, 8)


def sample(x, t, **more):
    return dict(sample=x, timestep=1000 * t, encoder_hidden_states=TEXT, **more)


add("WanTransformer3DModel", VIDEO, text, rope_max_seq_len=32, **WAN)
add("SkyReelsV2Transformer3DModel", VIDEO, text, rope_max_seq_len=32, **WAN)
add("ChronoEditTransformer3DModel", VIDEO, text, rope_max_seq_len=32, **WAN)
add("WanVACETransformer3DModel", VIDEO,
    lambda x, t: text(x, t, control_hidden_states=torch.ones(B, 4, 2, 8, 8)),
    rope_max_seq_len=32, vace_layers=[0, 1], vace_in_channels=4, **WAN | dict(num_layers=2))
add("AnyFlowTransformer3DModel", FRAMES,
    lambda x, t: text(x, 1000 * t[:, None].expand(B, 2), r_timestep=torch.zeros(B, 2)),
    rope_max_seq_len=32, **WAN)
add("HeliosTransformer3DModel", VIDEO, text, rope_dim=(4, 4, 4), **WAN)
add("WanAnimateTransformer3DModel", (B, 12, 3, 8, 8),
    lambda x, t: text(x, t, encoder_hidden_states_image=TEXT, pose_hidden_states=torch.ones(VIDEO),
                      face_pixel_values=torch.ones(B, 3, 5, 16, 16)),
    rope_max_seq_len=32, latent_channels=4, image_dim=8, motion_encoder_size=16,
    motion_style_dim=8, motion_dim=4, motion_encoder_dim=16, face_encoder_hidden_dim=16,
    motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, face_encoder_num_heads=2,
    inject_face_latents_blocks=1, **WAN | dict(in_channels=12))
add("SanaVideoTransformer3DModel", VIDEO, text, rope_max_seq_len=32, sample_size=8, **SANA)
add("CogVideoXTransformer3DModel", FRAMES, text, **COG)
add("CogVideoXTransformer3DModel+rotary", FRAMES,
    lambda x, t: text(x, t, image_rotary_emb=rotary(16, 32)),
    use_rotary_positional_embeddings=True, **COG)
add("ConsisIDTransformer3DModel", FRAMES, text, **COG)
add("EasyAnimateTransformer3DModel", VIDEO, text, num_layers=1, mmdit_layers=1, patch_size=2,
    time_embed_dim=8, text_embed_dim=8, sample_width=8, sample_height=8, **IN_OUT, **HEADS)
add("AllegroTransformer3DModel", VIDEO,
    lambda x, t: text(x, t, attention_mask=torch.ones(B, 2, 8, 8), encoder_attention_mask=MASK,
                      image_rotary_emb=allegro_positions()),
    num_layers=1, cross_attention_dim=24, sample_height=8, sample_width=8, sample_frames=2,
    caption_channels=8, num_attention_heads=2, attention_head_dim=12, **IN_OUT)
add("MochiTransformer3DModel", VIDEO, masked, num_layers=2, pooled_projection_dim=8,
    text_embed_dim=8, time_embed_dim=8, in_channels=4, max_sequence_length=4, **HEADS)
add("LatteTransformer3DModel", VIDEO, text, num_layers=1, cross_attention_dim=32, sample_size=8,
    patch_size=2, norm_elementwise_affine=False, num_embeds_ada_norm=10, caption_channels=8,
    norm_type="ada_norm_single", video_length=2, attention_bias=True, **IN_OUT, **HEADS)
add("HunyuanVideoTransformer3DModel", VIDEO,
    lambda x, t: masked(x, t, pooled_projections=POOLED, guidance=torch.full((B,), 600.0)),
    **HUNYUAN)
add("HunyuanVideoFramepackTransformer3DModel", VIDEO,
    lambda x, t: masked(x, t, pooled_projections=POOLED, guidance=torch.full((B,), 600.0),
                        image_embeds=TEXT, indices_latents=torch.arange(1, 3),
                        latents_clean=torch.ones(B, 4, 1, 8, 8),
                        indices_latents_clean=torch.arange(1),
                        latents_history_2x=torch.ones(VIDEO), latents_history_4x=torch.ones(VIDEO),
                        indices_latents_history_2x=torch.arange(2),
                        indices_latents_history_4x=torch.arange(2)),
    has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True, **HUNYUAN)
add("HunyuanVideo15Transformer3DModel", (B, 9, 2, 4, 4),
    lambda x, t: masked(x, t, encoder_hidden_states_2=TEXT, encoder_attention_mask_2=MASK.bool(),
                        image_embeds=torch.zeros(B, 4, 8)),
    in_channels=9, out_channels=4, num_layers=1, num_refiner_layers=1, text_embed_dim=8,
    text_embed_2_dim=8, image_embed_dim=8, rope_axes_dim=(4, 4, 8), task_type="t2v", **HEADS)
add("MotifVideoTransformer3DModel", VIDEO, masked, num_layers=1, num_single_layers=1,
    text_embed_dim=8, rope_axes_dim=(4, 4, 8), **IN_OUT, **HEADS)
add("CosmosTransformer3DModel", VIDEO,
    lambda x, t: text(x, t / 1000, padding_mask=torch.zeros(1, 1, 8, 8), fps=16),
    num_layers=1, text_embed_dim=8, adaln_lora_dim=4, max_size=(4, 16, 16),
    concat_padding_mask=True, extra_pos_embed_type=None, **IN_OUT, **HEADS)
add("Kandinsky5Transformer3DModel", (B, 2, 8, 8, 4),
    lambda x, t: text(x, t, pooled_projections=POOLED, text_rope_pos=torch.arange(4),
                      visual_rope_pos=[torch.arange(2), torch.arange(4), torch.arange(4)]),
    in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=16, model_dim=32,
    ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 4, 8))
add("Kandinsky6Transformer3DModel", (1, 2, 8, 8, 4),
    lambda x, t: dict(hidden_states=x, timestep=1000 * t[:1], encoder_hidden_states=TEXT[:1],
                      pooled_projections=POOLED[:1]),
    in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=16, model_dim=32,
    ff_dim=32, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 4, 8), visual_cond=False)
add("LTXVideoTransformer3DModel", (B, 32, 4),
    lambda x, t: masked(x, t, num_frames=2, height=4, width=4), **LTX)
add("LTX2VideoTransformer3DModel", (B, 32, 4),
    lambda x, t: masked(x, t, num_frames=2, height=4, width=4, audio_num_frames=4,
                        audio_hidden_states=TEXT[..., :4], audio_encoder_hidden_states=TEXT),
    **LTX2)
add("SanaWMLTX2RefinerTransformer3DModel", (B, 32, 4),
    lambda x, t: text(x, t, video_rotary_emb=rotary(16, 32)), **LTX2)
add("UNet3DConditionModel", VIDEO, sample, attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), **UNET)
add("I2VGenXLUNet", VIDEO,
    lambda x, t: sample(x, t, fps=torch.full((B,), 8), image_latents=torch.ones(VIDEO),
                        image_embeddings=POOLED),
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), attention_head_dim=8, **UNET)
add("UNetMotionModel", VIDEO,
    lambda x, t: sample(x, t) | dict(encoder_hidden_states=TEXT.repeat_interleave(2, 0)),
    num_attention_heads=2, motion_num_attention_heads=2,
    motion_max_seq_length=8, down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), **UNET)
add("UNetSpatioTemporalConditionModel", FRAMES,
    lambda x, t: sample(x, t, added_time_ids=torch.ones(B, 3)), sample_size=8, layers_per_block=1,
    block_out_channels=(32, 32), cross_attention_dim=8, addition_time_embed_dim=8, num_frames=2,
    projection_class_embeddings_input_dim=24, num_attention_heads=2, in_channels=4, out_channels=4,
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"))
add("TransformerTemporalModel", (2 * B, 32, 4, 4),
    lambda x, t: dict(hidden_states=x * t.repeat(2).view(2 * B, 1, 1, 1), num_frames=2),
    in_channels=32, norm_num_groups=8, **HEADS)

add("StableAudioDiTModel", (B, 4, 8),
    lambda x, t: text(x, t / 1000, global_hidden_states=POOLED[:, None],
                      rotary_embedding=rotary(8, 9)),
    sample_size=8, in_channels=4, num_layers=1, num_key_value_attention_heads=2, out_channels=4,
    cross_attention_dim=8, time_proj_dim=8, global_states_input_dim=8,
    cross_attention_input_dim=8, **HEADS)
add("StableAudio3DiTModel", (B, 4, 8),
    lambda x, t: dict(hidden_states=x, timestep=t, encoder_hidden_states=TEXT,
                      global_hidden_states=POOLED, local_add_cond=torch.zeros(B, 5, 8)),
    io_channels=4, embed_dim=64, depth=1, num_heads=2, cond_token_dim=8, global_cond_dim=8,
    local_add_cond_dim=5, timestep_features_dim=16, num_memory_tokens=4)
add("AceStepTransformer1DModel", (B, 8, 4),
    lambda x, t: dict(hidden_states=x, timestep=t, timestep_r=t, context_latents=LONG[:, :8],
                      encoder_hidden_states=TEXT.repeat(1, 1, 4)),
    hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, in_channels=12, audio_acoustic_hidden_dim=4,
    sliding_window=4)
add("LongCatAudioDiTTransformer", (B, 8, 4),
    lambda x, t: dict(hidden_states=x, timestep=t, encoder_hidden_states=TEXT,
                      encoder_attention_mask=MASK.bool(), latent_cond=torch.zeros(B, 8, 4),
                      attention_mask=torch.ones(B, 8, dtype=torch.bool)),
    dit_dim=32, dit_depth=1, dit_heads=2, dit_text_dim=8, latent_dim=4)
add("MiniMaxMusic3Transformer1DModel", (B, 4, 8),
    lambda x, t: dict(hidden_states=x, timestep=t, encoder_hidden_states=LONG[:, :8]),
    in_channels=4, condition_dim=8, num_layers=1, ff_inner_dim=32, rotary_dim=8,
    fourier_embedding_dim=16, **HEADS)
add("T5FilmDecoder", (B, 8, 4),
    lambda x, t: dict(encodings_and_masks=[(TEXT, MASK)], decoder_input_tokens=x,
                      decoder_noise_time=t),
    input_dims=4, targets_length=8, d_model=8, num_layers=1, num_heads=2, d_kv=4, d_ff=16)
add("UNet1DModel", (B, 2, 32), lambda x, t: dict(sample=x, timestep=1000 * t), sample_size=32,
    extra_in_channels=64, down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"))
# fmt: on


def allegro_positions():
    """Rotary embeddings of frames, rows and columns, and the grid that picks them."""
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(4)).T
    tables = tuple(rotary(4, n) for n in (2, 4, 4))
    return tables, grid.unsqueeze(1)
