"""The score of pictures by their captions, by a tiny CLIP."""

import pytest
import texts
import torch

from modalities.image import SPEC, ImageConfig
from scm_core.base.errors import UserError

transformers = pytest.importorskip("transformers")


@pytest.fixture
def clip(tmp_path):
    """A CLIP with random weights, its tokenizer and its image processor."""
    folder = tmp_path / "clip"
    words = texts.tokenizer(folder, length=16)
    wide = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    wide |= {"num_attention_heads": 2}
    of_text = {**wide, "vocab_size": len(words), "max_position_embeddings": 16}
    of_text |= {"bos_token_id": 2, "eos_token_id": 3}
    config = transformers.CLIPConfig(
        text_config=of_text,
        vision_config={**wide, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    network = transformers.CLIPModel(config).eval()
    network.text_projection.weight.data.neg_()  # or these weights find nothing alike
    network.save_pretrained(folder)
    size = {"shortest_edge": 16}, {"height": 16, "width": 16}
    transformers.CLIPImageProcessor(size=size[0], crop_size=size[1]).save_pretrained(folder)
    return folder, network


def scorer(data, clip):
    config = ImageConfig(modality="image")
    config.data.clip = str(clip)
    return SPEC.scorer(config, data)


def test_a_score_is_the_cosine_of_the_held_out_captions_own_texts(tmp_path, clip):
    folder, network = clip
    texts.captioned(tmp_path / "data", 60)
    data = texts.prepared(tmp_path / "data", texts.bert(tmp_path / "bert"))
    media, condition = next(data.real("test"))
    found = scorer(data, folder)(media, condition)["clip_score"]
    said = [data.condition["prompt"].show(value) for value in condition["prompt"]]
    assert set(said) <= texts.SAID and len(found) == len(media) == 3
    words = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = transformers.CLIPImageProcessor.from_pretrained(folder)
    pictures = [picture.permute(1, 2, 0).numpy() for picture in media]
    given = words(said, padding=True, return_tensors="pt")
    with torch.no_grad():
        one = network(
            given.input_ids,
            pixels(pictures, return_tensors="pt").pixel_values,
            given.attention_mask,
        )
    cosine = (one.image_embeds * one.text_embeds).sum(1)
    assert (cosine > 0).all()
    assert torch.allclose(found, 100 * cosine.clamp(min=0), atol=1e-3)
    other = scorer(data, folder)(255 - media, condition)["clip_score"]
    assert not torch.equal(found, other)


def test_without_a_clip_captions_have_no_score_and_a_wrong_one_is_a_sentence(tmp_path):
    texts.captioned(tmp_path / "data", 12)
    data = texts.prepared(tmp_path / "data", texts.bert(tmp_path / "bert"))
    media, condition = next(data.real("test"))
    assert scorer(data, "")(media, condition) == {}
    with pytest.raises(UserError, match="data.clip=.* cannot be read"):
        scorer(data, tmp_path / "bert")
