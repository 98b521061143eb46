"""The autoencoder of a pretrained pipeline, whose latents are normalised as its config says."""

import json

import pipelines
import pytest
import torch

from modalities.common import pretrained
from scm_core.base.errors import UserError
from scm_core.contract.fields import Label

diffusers = pipelines.diffusers

WAN = {"base_dim": 8, "z_dim": 2, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}
OF_CLIPS = {"latents_mean": [0.1, -0.2], "latents_std": [2.0, 4.0]}
STATISTICS = {"mean": [0.0] * 3, "std": [1.0] * 3}
X = 0.5 * torch.randn(2, 3, 32, 32)


def of(tmp_path, vae, name="UNet2DModel"):
    pipelines.build(name).save_pretrained(tmp_path)
    vae.save_pretrained(tmp_path / "vae")
    return str(tmp_path)


def flux2():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=2,
    )
    vae.bn.running_mean.uniform_(-1, 1)
    vae.bn.running_var.uniform_(1, 4)
    return vae


def test_a_vae_of_clips_codes_a_picture_as_its_only_frame(tmp_path):
    name = of(tmp_path, diffusers.AutoencoderKLWan(**WAN, **OF_CLIPS))
    found = pretrained.of_pipeline(name, (3, 32, 32), STATISTICS).eval()
    with torch.no_grad():
        z = found.encode(X)
        clip = found.network.encode(2 * X[:, :, None]).latent_dist.mode()
        assert found.decode(z).shape == X.shape
    torch.testing.assert_close(z, clip[:, :, 0])
    assert found.normalisation == {"mean": [0.1, -0.2], "std": [2.0, 4.0]}


def test_flux_2_folds_cells_and_normalises_by_its_weights(tmp_path):
    found = pretrained.of_pipeline(of(tmp_path, flux2()), (3, 32, 32), STATISTICS).eval()
    bn = found.network.bn
    with torch.no_grad():
        z = found.encode(X)
        plain = found.network.encode(2 * X).latent_dist.mode()
        theirs = diffusers.Flux2KleinPipeline._patchify_latents(plain)
        back = found.decode(z)
    torch.testing.assert_close(z, theirs)
    assert back.shape == X.shape and found.normalisation["mean"] == bn.running_mean.tolist()


def test_a_vae_that_states_no_normalisation_is_read_in_silence(tmp_path, recwarn):
    found = pretrained.of_pipeline(of(tmp_path, pipelines.vae()), (3, 32, 32), STATISTICS)
    scaled = 1 / found.network.config.scaling_factor
    assert found.normalisation == {"mean": [0.0] * 4, "std": [scaled] * 4}
    assert not [one for one in recwarn if "latents_mean" in str(one.message)]


def test_a_pipeline_without_a_vae_makes_pixels(tmp_path):
    pipelines.build("UNet2DModel").save_pretrained(tmp_path)
    assert pretrained.of_pipeline(str(tmp_path), (3, 8, 8), STATISTICS) is None


def test_classes_have_to_be_those_of_the_network(tmp_path):
    pipelines.build("DiTTransformer2DModel").save_pretrained(tmp_path)
    name = str(tmp_path)
    pretrained.backbone(name, {"label": Label(10)}, 2.0)  # its eleventh row is none of them
    with pytest.raises(UserError, match="knows 10 classes, the data have 11"):
        pretrained.backbone(name, {"label": Label(11)}, 1.0)


def test_guidance_needs_a_class_that_stands_for_none(tmp_path):
    pipelines.build("UNet2DModel").save_pretrained(tmp_path)
    network = diffusers.UNet2DModel(
        **pipelines.CASES["UNet2DModel"].options | {"num_class_embeds": 3}
    )
    network.save_pretrained(tmp_path / "unet")
    name = str(tmp_path)
    pretrained.backbone(name, {"label": Label(2)}, 2.0)
    pretrained.backbone(name, {"label": Label(3)}, 1.0)
    for classes in (1, 3):  # which of several others is none, no file says
        with pytest.raises(UserError, match="none is left for no class: give student.guidance=1"):
            pretrained.backbone(name, {"label": Label(classes)}, 2.0)


def test_a_vae_that_is_none_is_named(tmp_path):
    name = of(tmp_path, flux2())
    file = tmp_path / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "UNet1DModel"}))
    with pytest.raises(UserError, match=r"pretrained=.*: its vae is a UNet1DModel"):
        pretrained.of_pipeline(name, (3, 32, 32), STATISTICS)
