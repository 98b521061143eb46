"""Tiny text encoders, made on the spot, and captioned pictures."""

import json
from pathlib import Path

import torch
from PIL import Image

WORDS = "a red green blue heart star square on white black small large".split()
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


def tokenizer(folder: Path, length: int = 16, words: list[str] = WORDS):
    """A tokenizer of whole words, BERT's, saved in a folder."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *words]) + "\n")
    made = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=length)
    made.save_pretrained(folder)
    return made


def bert(folder: Path, seed: int = 0, width: int = 16) -> Path:
    """A BERT of two layers with random weights and its tokenizer."""
    from transformers import BertConfig, BertModel

    words = tokenizer(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def pictures(folder: Path, n: int = 24, size: int = 16) -> list[tuple[Path, str]]:
    """Plain pictures of a colour, `0.png` and so on, and a caption of each; none is written."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(n):
        name = list(COLOURS)[i % 3]
        path = folder / f"{i}.png"
        Image.new("RGB", (size, size), COLOURS[name]).save(path)
        found.append((path, f"a {name} {('heart', 'star')[i % 2]}"))
    return found


def captioned(folder: Path, n: int = 24, size: int = 16) -> list[tuple[Path, str]]:
    """The same with a text file beside each picture."""
    found = pictures(folder, n, size)
    for path, caption in found:
        path.with_suffix(".txt").write_text(caption + "\n")
    return found


def prepared(root, encoder, **more):
    """Captioned pictures that are ready to be read."""
    from modalities.common.text import TextEncoder
    from modalities.image.data import ImageData, ImageDataModule

    config = ImageData(root=str(root), batch_size=4, **more)
    data = ImageDataModule(config, encoder=TextEncoder(str(encoder), "data.text_encoder"))
    data.setup()
    return data


def pipeline(kind: str, folder: Path) -> Path:
    """A pipeline of diffusers with a tiny text encoder, or two, and nothing else."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    small = {"vocab_size": 40, "num_attention_heads": 2, "num_hidden_layers": 2}
    wide = {**small, "hidden_size": 16, "intermediate_size": 32}
    t5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    gemma = {**wide, "num_key_value_heads": 1, "head_dim": 8}
    clip = {**wide, "max_position_embeddings": 77, "projection_dim": 8}
    clip |= {"bos_token_id": 2, "eos_token_id": 3}
    build = {
        "t5": lambda: transformers.T5EncoderModel(transformers.T5Config(**t5)),
        "umt5": lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(**t5)),
        "gemma": lambda: transformers.Gemma2Model(transformers.Gemma2Config(**gemma)),
        "qwen": lambda: transformers.Qwen3Model(transformers.Qwen3Config(**gemma)),
        "clip": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**clip)),
        "projected": lambda: transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(**clip)
        ),
    }
    encoders, more = {
        "PixArtAlphaPipeline": (["t5"], {}),
        "SanaPipeline": (["gemma"], {}),
        "StableDiffusionPipeline": (["clip"], {"requires_safety_checker": False}),
        "StableDiffusionXLPipeline": (["clip", "projected"], {}),
        "FluxPipeline": (["clip", "t5"], {}),
        "ZImagePipeline": (["qwen"], {}),
        "WanPipeline": (["umt5"], {}),
    }[kind]
    index = {"_class_name": kind, "_diffusers_version": diffusers.__version__, **more}
    for i, name in enumerate(encoders):
        ending = f"_{i + 1}" if i else ""
        length = 77 if name in ("clip", "projected") else 512
        words = tokenizer(folder / f"tokenizer{ending}", length)
        words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        words.save_pretrained(folder / f"tokenizer{ending}")
        network = build[name]()
        network.save_pretrained(folder / f"text_encoder{ending}")
        index[f"text_encoder{ending}"] = ["transformers", type(network).__name__]
        index[f"tokenizer{ending}"] = ["transformers", "BertTokenizerFast"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


SAID = {f"a {name} {form}" for name in COLOURS for form in ("heart", "star")}


def student(folder: Path, encoder: Path) -> Path:
    """The checkpoint of an untrained student of captioned pictures, which looks at its prompt."""
    from modalities.image import SPEC
    from scm_core.base.arguments import parse
    from scm_core.contract.fields import with_examples
    from scm_core.data.batches import spread
    from scm_core.engine import config, storage

    captioned(folder / "captioned", 40, size=8)
    words = [f"data.root={folder / 'captioned'}", f"data.text_encoder={encoder}"]
    words += ["backbone.name=transformer", "backbone.options={width: 16, depth: 1, heads: 2}"]
    settings = config.finish(SPEC, parse(["modality=image", "data.batch_size=8", *words]))
    data = SPEC.data(settings)
    data.setup()
    network = SPEC.backbone(settings, data.shape, data.condition, data.statistics)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    path = folder / "model" / "student.safetensors"
    storage.export(
        path,
        network.state_dict(),
        stage="student",
        step=0,
        config=settings,
        shape=data.shape,
        condition=with_examples(data.condition, spread(data.val_dataloader(), 2).condition),
        statistics=data.statistics,
    )
    return path
