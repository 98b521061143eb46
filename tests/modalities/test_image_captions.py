"""Captioned pictures: a condition `prompt`, training without the encoder, and its checkpoints."""

import json

import pytest
import texts
import torch
from safetensors import safe_open

from modalities.common import text
from scm_core.apps import sample
from scm_core.base.errors import UserError
from scm_core.contract.spec import Autoencoder
from scm_core.data import provenance
from scm_core.data.latents import Latents
from scm_core.engine import run

pytest.importorskip("transformers")


def test_pictures_have_prompts_and_keep_their_captions(tmp_path):
    truth = texts.captioned(tmp_path / "data", 40)
    encoder = texts.bert(tmp_path / "bert")
    data = texts.prepared(tmp_path / "data", encoder)
    assert list(data.condition) == ["prompt"] and len(data.test_set) == 2
    field, colours = data.condition["prompt"], {tuple(c): n for n, c in texts.COLOURS.items()}
    for split in data.splits:
        media, values = split.media(torch.arange(2)), split.condition(torch.arange(2))["prompt"]
        field.validate(values)
        for picture, value, said in zip(media, values, split.prompts.captions, strict=False):
            assert f" {colours[tuple(picture[:, 0, 0].tolist())]} " in said
            assert torch.equal(value, field.parse(said))
    held_out = data.test_set.split.condition(torch.tensor([1]))["prompt"][0]
    assert field.show(held_out) in dict(truth).values()


def test_what_the_samples_are_made_of_says_captions_and_encoder(tmp_path):
    truth = texts.captioned(tmp_path / "data", 12)
    one, two = (texts.bert(tmp_path / f"bert{seed}", seed) for seed in (0, 1))
    first, other = (texts.prepared(tmp_path / "data", encoder).identity for encoder in (one, two))
    truth[0][0].with_suffix(".txt").write_text("a white star")
    changed = texts.prepared(tmp_path / "data", one).identity
    assert len({json.dumps(identity) for identity in (first, other, changed)}) == 3


def test_a_text_prompt_is_sampled_from_a_student_that_learned_captions(tmp_path):
    texts.captioned(tmp_path / "data", 12, size=8)
    encoder, out = texts.bert(tmp_path / "bert"), tmp_path / "run"
    words = ["modality=image", "preset=smoke", f"data.root={tmp_path / 'data'}", f"out={out}"]
    words += ["backbone.name=transformer", "data.batch_size=8", "max_steps=2"]
    words += ["backbone.options={width: 16, depth: 1, heads: 2}", f"data.text_encoder={encoder}"]
    run.main(words)
    asked = [f"checkpoint={out}", "n=2", f"out={tmp_path / 'samples'}"]
    sample.main(asked)
    captions = {provenance.read(tmp_path / f"samples/{i:05d}.png")["prompt"] for i in range(2)}
    assert captions <= {f"a {name} {form}" for name in texts.COLOURS for form in ("heart", "star")}
    text.opened.cache_clear()
    with pytest.raises(UserError, match=r"data\.text_encoder="):
        sample.main([*asked, "prompt=a large white heart"])
    prompts = '["a large white heart", "a small star"]'
    sample.main([*asked, f"condition.prompt={prompts}", f"data.text_encoder={encoder}"])
    said = [provenance.read(tmp_path / f"samples/{i:05d}.png")["prompt"] for i in range(2)]
    assert said == json.loads(prompts)


class Halves(Autoencoder):
    """Pictures at half their size."""

    def encode(self, x):
        return torch.nn.functional.avg_pool2d(x, 2)

    def decode(self, z):
        return torch.nn.functional.interpolate(z, scale_factor=2.0)


def test_the_cache_of_latents_holds_no_embeddings_and_batches_have_their_prompts(tmp_path):
    texts.captioned(tmp_path / "data", 12)
    data = texts.prepared(tmp_path / "data", texts.bert(tmp_path / "bert"))
    latents = Latents(data, Halves(), 4, tmp_path / "latents")
    (kept,) = (tmp_path / "latents").glob("*.safetensors")
    with safe_open(kept, "pt") as file:
        assert set(file.keys()) == {"train.latents", "test.latents"}
    indices = [3, 0, 3]
    x, condition = latents.train_set.__getitems__(indices)
    truth = data.train_set.__getitems__(indices)
    assert torch.equal(condition["prompt"], truth.condition["prompt"]) and x.shape[2:] == (8, 8)
    batch = next(iter(latents.train_dataloader()))
    data.condition["prompt"].validate(batch.condition["prompt"])
