"""What two steps of a student are worth beside fifty of its teacher's own pipeline.

    python benchmarks/emoji/figures.py --teacher TEACHER --student STUDENT --out runs/emoji-figures

has both folders draw every prompt by diffusers alone (`draw.py`), and writes `figures.json`, the
table and a picture. Distances are to the real emoji, in two extractors: EfficientNet-Lite0, and a
classifier trained here on the real emoji, which also says whether a picture is of its prompt: of
that emoji among all, and of that font.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from modalities.common.efficientnet import EfficientNetLite0
from scm_core.evaluation.classifier import convolution
from scm_core.evaluation.metrics import frechet_distance, kernel_distance

FONTS = "google", "twitter"
STEPS, BATCH, RATE = 600, 64, 3e-3  # of the classifier
HERE = Path(__file__).parent
SHOWN = (4, 10, 59, 60, 73, 102, 138, 140)  # of the emoji


class Classifier(nn.Module):
    """Which emoji, and which font: 64x64 pixels in [0, 1] to features (B, 128) and logits."""

    def __init__(self, emoji: int) -> None:
        super().__init__()
        widths = 3, 32, 64, 96, 128
        layers = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [convolution(inputs, outputs), nn.MaxPool2d(2)]
        self.body = nn.Sequential(nn.AvgPool2d(2), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.emoji, self.font = nn.Linear(128, emoji), nn.Linear(128, len(FONTS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(x)
        return features, self.emoji(features), self.font(features)


@dataclass
class Real:
    """The real emoji: pictures uint8 (N, 3, H, W), prompts, and what each is of."""

    pictures: Tensor
    prompts: list[str]
    emoji: Tensor
    font: Tensor
    held: Tensor  # whether nothing was trained on it

    @classmethod
    def read(cls, folder: Path) -> "Real":
        rows = json.loads((folder / "emoji.json").read_text())
        pictures = np.stack([np.asarray(Image.open(folder / row["file"])) for row in rows])
        names = [row["prompt"].rpartition(",")[0] for row in rows]
        known = {name: index for index, name in enumerate(dict.fromkeys(names))}
        return cls(
            torch.from_numpy(pictures).permute(0, 3, 1, 2),
            [row["prompt"] for row in rows],
            torch.tensor([known[name] for name in names]),
            torch.tensor([FONTS.index(row["font"]) for row in rows]),
            torch.tensor([row["file"].startswith("held") for row in rows]),
        )


def varied(x: Tensor) -> Tensor:
    """Pictures in [0, 1] a little moved, scaled, blurred and recoloured: no drawing is exact."""
    angle, size = 0.2 * torch.randn(len(x)), 1 + 0.12 * torch.randn(len(x))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    moved = torch.cat([turn * size[:, None, None], 0.1 * torch.randn(len(x), 2, 1)], 2)
    places = functional.affine_grid(moved, list(x.shape), align_corners=False)
    seen = 1 - functional.grid_sample(1 - x, places, align_corners=False)  # white around it
    small = functional.interpolate(functional.avg_pool2d(seen, 2), scale_factor=2.0)
    seen = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, small, seen)
    return seen + 0.06 * torch.randn(len(x), 3, 1, 1) + 0.04 * torch.randn_like(seen)


def kept(file: Path, *of: bytes) -> bool:
    """Whether a file is there that was made of these; notes beside it what it is to be made of."""
    note, found = file.with_suffix(".sha256"), hashlib.sha256(b"".join(of)).hexdigest()
    if file.exists() and note.exists() and note.read_text() == found:
        return True
    file.unlink(missing_ok=True)
    note.write_text(found)
    return False


def classifier(real: Real, file: Path) -> Classifier:
    """Trained on the real emoji, varied; seeded, and kept in a file."""
    torch.manual_seed(0)
    network = Classifier(int(real.emoji.max()) + 1)
    if kept(file, real.pictures.numpy().tobytes(), json.dumps(real.prompts).encode()):
        network.load_state_dict(load_file(file))
        return network.eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS)
    for _ in range(STEPS):
        chosen = torch.randint(len(real.emoji), (BATCH,))
        _, emoji, font = network(varied(real.pictures[chosen] / 255))
        loss = functional.cross_entropy(emoji, real.emoji[chosen])
        loss = loss + functional.cross_entropy(font, real.font[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    save_file(network.state_dict(), file)
    return network.eval().requires_grad_(False)


def drawn(folder: Path, prompts: list[str], out: Path, **options: float) -> Tensor:
    """Pictures uint8 (seeds, N, 3, H, W) by diffusers alone, drawn once by the same folder."""
    listed = json.dumps(prompts)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not kept(out, f"{listed} {options}".encode(), *(path.read_bytes() for path in files)):
        out.with_suffix(".json").write_text(listed)
        more = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, HERE / "draw.py", folder, out.with_suffix(".json"), out, *more]
        subprocess.run(command, check=True)
    return torch.from_numpy(np.load(out)).permute(0, 1, 4, 2, 3)


class Judges:
    """Both extractors, and what the classifier reads."""

    def __init__(self, real: Real, folder: Path) -> None:
        self.real, self.plain = real, EfficientNetLite0()
        self.network = classifier(real, folder / "classifier.safetensors")
        self.known = self.features(real.pictures)

    def features(self, pictures: Tensor) -> dict[str, Tensor]:
        parts = [self.network(part / 255)[0] for part in pictures.split(BATCH)]
        return {"efficientnet_lite0": self.plain(pictures), "emoji_classifier": torch.cat(parts)}

    def distances(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
        found = {}
        for name, features in a.items():
            kid, _ = kernel_distance(features, b[name], generator=torch.Generator().manual_seed(0))
            found |= {f"fd_{name}": frechet_distance(features, b[name]), f"kid_{name}": kid}
        return found

    def row(self, pictures: Tensor) -> dict[str, float]:
        """Of pictures (seeds, N, 3, H, W) of all prompts: distances, and shares that are right."""
        flat, seeds = pictures.flatten(0, 1), len(pictures)
        read = [self.network(part / 255)[1:] for part in flat.split(BATCH)]
        emoji, font = (torch.cat(logits).argmax(1) for logits in zip(*read, strict=True))
        right = emoji == self.real.emoji.repeat(seeds), font == self.real.font.repeat(seeds)
        shares = {"emoji": right[0], "font": right[1], "prompt": right[0] & right[1]}
        row = {f"{key}_accuracy": value.double().mean().item() for key, value in shares.items()}
        row["emoji_accuracy_held_out"] = (
            right[0][self.real.held.repeat(seeds)].double().mean().item()
        )
        return self.distances(self.known, self.features(flat)) | row


def page(rows: list[Tensor], chosen: list[int], file: Path) -> None:
    """A row of pictures each: real, teacher, student at two steps and at one."""
    lines = [torch.cat(list(pictures[chosen]), -1) for pictures in rows]
    whole = torch.cat(lines, -2).permute(1, 2, 0).numpy()
    Image.fromarray(whole).quantize(128).save(file, optimize=True)


def main(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    real = Real.read(options.data)
    judges, seeds = Judges(real, options.out), options.seeds
    settings = {
        "teacher, 50 steps": (options.teacher, 50, options.guidance),
        "student, 2 steps": (options.student, 2, 1.0),
        "student, 1 step": (options.student, 1, 1.0),
    }
    pictures = {
        name: drawn(
            folder,
            real.prompts,
            options.out / f"{name.replace(', ', '-').replace(' ', '-')}.npy",
            steps=steps,
            guidance=guidance,
            seeds=seeds,
        )
        for name, (folder, steps, guidance) in settings.items()
    }
    figures = {name: judges.row(found) for name, found in pictures.items()}
    halves = torch.randperm(len(real.emoji), generator=torch.Generator().manual_seed(0)).chunk(2)
    a, b = ({key: value[half] for key, value in judges.known.items()} for half in halves)
    figures["real, halves"] = judges.distances(a, b)
    figures["real"] = {k: v for k, v in judges.row(real.pictures[None]).items() if "accuracy" in k}
    (options.out / "figures.json").write_text(json.dumps(figures, indent=1))
    for name, row in figures.items():
        print(name, {key: round(value, 4) for key, value in row.items()})
    ours, theirs = figures["student, 2 steps"], figures["teacher, 50 steps"]
    print("two steps over fifty", {key: round(ours[key] / theirs[key], 3) for key in ours})
    chosen = [index for number in SHOWN for index in (2 * number, 2 * number + 1)]
    print([real.prompts[index] for index in chosen])
    rows = [real.pictures, *(found[0] for found in pictures.values())]
    page(rows, chosen, options.out / "emoji.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--teacher", type=Path, default=Path("runs/emoji-teacher/pipeline"))
    parser.add_argument("--student", type=Path, default=Path("runs/emoji-student/pipeline"))
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-figures"))
    main(parser.parse_args())
