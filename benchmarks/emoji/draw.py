"""Pictures of prompts by a pipeline's folder, in a process that has diffusers alone.

python benchmarks/emoji/draw.py FOLDER prompts.json pictures.npy --steps 2 --guidance 1
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

HOW = {  # pictures of 64x64, and the prompt as it is
    "height": 64,
    "width": 64,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
    "max_sequence_length": 32,
}
BATCH = 64


def main(options: argparse.Namespace) -> None:
    """Write uint8 pictures (seeds, prompts, H, W, 3); seed s is the same noise for any folder."""
    prompts, drawn = json.loads(options.prompts.read_text()), []
    pipeline = DiffusionPipeline.from_pretrained(options.folder)
    pipeline.set_progress_bar_config(disable=True)
    how = HOW | {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    for seed in range(options.seeds):
        generator = torch.Generator().manual_seed(seed)
        for first in range(0, len(prompts), BATCH):
            some = prompts[first : first + BATCH]
            drawn.extend(pipeline(some, generator=generator, output_type="np", **how).images)
            print(f"{options.folder}: {len(drawn)} pictures", flush=True)
    pictures = (np.stack(drawn) * 255).round().astype(np.uint8)
    np.save(options.out, pictures.reshape(options.seeds, len(prompts), *pictures.shape[1:]))


if __name__ == "__main__":
    sys.modules["scm_core"] = None  # from here on an attempt to import it raises
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("prompts", type=Path, help="a list of texts")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=1)
    main(parser.parse_args())
