"""Autoencoders of diffusers, tiny and untrained, saved to a folder and read from there."""

import subprocess
import sys

import images
import pytest
import torch

from modalities.common import pretrained
from scm_core.base.errors import UserError
from scm_core.data.batches import channelwise
from scm_core.data.latents import Latents, latent_shape, run_autoencoder

diffusers = pytest.importorskip("diffusers")

WIDTHS = {"block_out_channels": (8, 8)}
MAKE = {
    "kl": lambda: diffusers.AutoencoderKL(
        **WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
    ),
    "tiny": lambda: diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "dc": lambda: diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    ),
    "wan": lambda: diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1
    ),
    "wan 2.2": lambda: diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        in_channels=12,
        out_channels=12,
        patch_size=2,
    ),
    "qwen": lambda: diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1
    ),
    "ltx": lambda: diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ),
}
CASES = [
    ("kl", (3, 32, 32), (4, 16, 16)),
    ("kl", (1, 32, 32), (4, 16, 16)),
    ("tiny", (3, 32, 32), (4, 16, 16)),
    ("dc", (3, 32, 32), (4, 16, 16)),
    ("dc", (3, 5, 32, 32), (4, 5, 16, 16)),
    ("wan", (3, 17, 32, 32), (4, 5, 4, 4)),
    ("wan 2.2", (3, 17, 32, 32), (4, 5, 2, 2)),
    ("qwen", (3, 5, 32, 32), (4, 2, 4, 4)),
    ("ltx", (3, 9, 32, 32), (8, 2, 1, 1)),
]


def save(name, folder):
    torch.manual_seed(0)
    MAKE[name]().save_pretrained(folder)
    return folder


def statistics(channels):
    return {"mean": [-0.2] * channels, "std": [0.4] * channels}


def load(folder, shape):
    return pretrained.load(str(folder), shape, statistics(shape[0])).eval()


@pytest.mark.parametrize(("name", "shape", "of_latents"), CASES)
def test_samples_become_latents_and_come_back_as_large(tmp_path, name, shape, of_latents):
    autoencoder = load(save(name, tmp_path), shape)
    x = 0.5 * torch.randn(2, *shape)
    with torch.no_grad():
        z = autoencoder.encode(x)
        back = autoencoder.decode(z)
    assert z.shape == (2, *of_latents)
    assert back.shape == x.shape
    assert latent_shape(autoencoder, x) == of_latents


def test_it_is_the_network_of_diffusers_on_pixels_from_minus_one_to_one(tmp_path):
    autoencoder = load(save("kl", tmp_path), (3, 16, 16))
    plain = diffusers.AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    pixels = 2 * torch.rand(2, 3, 16, 16) - 1
    x = (pixels + 0.2) / 0.4 * 0.5
    with torch.no_grad():
        z = plain.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(autoencoder.encode(x), z)
        back = autoencoder.decode(z) / 0.5 * 0.4 - 0.2
        torch.testing.assert_close(back, plain.decode(z).sample)


def test_frames_are_coded_one_by_one_where_the_network_is_of_pictures(tmp_path):
    autoencoder = load(save("kl", tmp_path), (3, 5, 16, 16))
    x = torch.randn(2, 3, 5, 16, 16)
    with torch.no_grad():
        z, alone = autoencoder.encode(x), autoencoder.encode(x[1:, :, 3:4])
        torch.testing.assert_close(z[1:, :, 3:4], alone)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("wan", (3, 16, 32, 32), "makes 3 x 13 x 32 x 32 of samples of 3 x 16 x 32 x 32"),
        ("kl", (3, 33, 33), "makes 3 x 32 x 32 of samples of 3 x 33 x 33"),
        ("wan", (3, 32, 32), "cannot take 3 x 32 x 32"),
    ],
)
def test_sizes_that_do_not_come_back_are_refused(tmp_path, name, shape, words):
    autoencoder = load(save(name, tmp_path), shape)
    with pytest.raises(UserError, match=words):
        latent_shape(autoencoder, torch.randn(1, *shape))


def test_what_cannot_be_loaded_is_said_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path, (3, 32, 32))
    diffusers.UNet1DModel(block_out_channels=(32, 32, 64)).save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match="is a UNet1DModel, which is no autoencoder"):
        load(tmp_path / "unet", (3, 32, 32))
    sound = diffusers.AutoencoderOobleck(8, [2], [1], 8, 4)
    sound.save_pretrained(tmp_path / "sound")
    with pytest.raises(UserError, match="is a AutoencoderOobleck, which takes no pictures"):
        load(tmp_path / "sound", (3, 32, 32))
    with pytest.raises(UserError, match="takes 3 channels, samples have 4"):
        load(save("tiny", tmp_path / "tiny"), (4, 32, 32))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'scm-core\[diffusers\]'"):
        load(tmp_path / "tiny", (3, 32, 32))


def test_mirrored_images_have_latents_both_ways(tmp_path, fashion_root):
    plain, flipped = (images.prepared(root=fashion_root, flip=flip) for flip in (False, True))
    same = pretrained.load(str(save("kl", tmp_path / "kl")), (1, 28, 28), plain.statistics).eval()
    one, both = (Latents(data, same, 16, tmp_path / "cache") for data in (plain, flipped))
    n = len(plain.train_set)
    assert (len(one.train_set), len(both.train_set), len(both.test_set)) == (n, 2 * n, 200)
    x, condition = both.train_set.__getitems__([3, n + 3])
    assert (
        condition["label"].tolist()
        == 2 * plain.train_set.__getitems__([3]).condition["label"].tolist()
    )
    pixels = plain.train_set.__getitems__([3]).x
    z = run_autoencoder(same, "encode", torch.cat([pixels, pixels.flip(-1)]))
    latents = both.statistics["latents"]
    mean, std = channelwise(latents, 2)
    torch.testing.assert_close(x, (z - mean) / std * 0.5, atol=2e-2, rtol=0)


def command(name, *words):
    line = [sys.executable, "-m", f"scm_core.{name}", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.mark.slow
def test_images_as_latents_of_a_pretrained_autoencoder(tmp_path, fashion_root):
    """Trained and drawn from by the commands; latents of another autoencoder are refused."""
    vae, out = save("tiny", tmp_path / "vae"), tmp_path / "run"
    words = ["modality=image", "preset=smoke", f"data.root={fashion_root}", "data.size=32"]
    words += [f"decoder.pretrained={vae}", f"out={out}"]
    done = command("train", *words)
    assert done.returncode == 0, done.stderr
    assert not (out / "decoder.safetensors").exists()
    student = [f"checkpoint={out}/student.safetensors", f"decoder.pretrained={vae}"]
    done = command("sample", *student, "n=2", f"out={tmp_path}/drawn")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "drawn" / "overview.png").exists()
    done = command("train", *words, "stage=decoder")
    assert (done.returncode, "none of teacher, student" in done.stderr) == (2, True)
    save("kl", vae)
    done = command("sample", *student, "n=2", f"out={tmp_path}/other")
    assert done.returncode == 2
    assert "latents of another autoencoder" in done.stderr
