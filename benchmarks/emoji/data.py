"""Emoji with their names, as a captioned folder: 64x64 RGB on white, a `.txt` beside each `.png`.

The pictures are those of two fonts, read from the archives that `npm pack` writes
(`emoji-datasource-google` and `emoji-datasource-twitter`, 16.0.0): Noto Emoji is under the Apache
License 2.0, Twemoji under CC BY 4.0. A prompt is the emoji's name and its font: "polar bear,
google style". Of every 20th emoji one font is held out (in `held/`, the rest in `train/`), so
that its prompt is new while its name and its style are not. `emoji.json` lists all of them.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

from PIL import Image

FONTS = "google", "twitter"
CATEGORY = "Animals & Nature"
HELD_OUT = 20


def names(archive: tarfile.TarFile) -> list[dict]:
    """The emoji of the category above that both fonts draw."""
    listed = json.load(archive.extractfile("package/emoji.json"))
    return [
        emoji
        for emoji in sorted(listed, key=lambda emoji: emoji["sort_order"])
        if emoji["category"] == CATEGORY and all(emoji[f"has_img_{font}"] for font in FONTS)
    ]


def picture(archive: tarfile.TarFile, font: str, name: str) -> Image.Image:
    """One emoji of 64x64 pixels, RGB on white."""
    data = archive.extractfile(f"package/img/{font}/64/{name}").read()
    drawn = Image.open(io.BytesIO(data)).convert("RGBA")
    page = Image.new("RGBA", drawn.size, "white")
    return Image.alpha_composite(page, drawn).convert("RGB")


def write(archives: dict[str, tarfile.TarFile], out: Path) -> list[dict]:
    """Every picture and its caption; returns what `emoji.json` says of each."""
    written = []
    for index, emoji in enumerate(names(archives["google"])):
        for place, font in enumerate(FONTS):
            held = index % HELD_OUT == 0 and index // HELD_OUT % len(FONTS) == place
            file = out / ("held" if held else "train") / f"{index:04d}-{font}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(archives[font], font, emoji["image"]).save(file)
            prompt = f"{emoji['name'].lower()}, {font} style"
            file.with_suffix(".txt").write_text(prompt)
            row = {"file": str(file.relative_to(out)), "prompt": prompt, "font": font}
            written.append(row | {"kind": emoji["subcategory"]})
    (out / "emoji.json").write_text(json.dumps(written, indent=1))
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=Path("."), help="where npm pack wrote")
    parser.add_argument("--out", type=Path, default=Path("data/emoji"))
    options = parser.parse_args()
    archives = {
        font: tarfile.open(options.packages / f"emoji-datasource-{font}-16.0.0.tgz")
        for font in FONTS
    }
    rows = write(archives, options.out)
    held = sum(row["file"].startswith("held") for row in rows)
    print(f"{len(rows)} pictures in {options.out}, {held} of them held out")
