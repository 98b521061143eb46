"""The field of prompts: what an encoder makes of them, what travels, and what it refuses."""

import gc
import inspect
import json
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import texts
import torch

from modalities.common.captions import encoded, encoder_of, prompt_of
from modalities.common.prompt import KEYS, Prompt
from modalities.common.text import TextEncoder
from modalities.image import SPEC, ImageConfig
from scm_core.base.errors import UserError
from scm_core.contract.fields import parse_condition, schema_from_dict, shown

transformers = pytest.importorskip("transformers")
CAPTIONS = ["a red heart", "a blue star", "a red heart", "large square"]


@pytest.fixture
def encoder(tmp_path) -> TextEncoder:
    return TextEncoder(str(texts.bert(tmp_path / "bert")), KEYS[0])


def travelled(field: Prompt) -> Prompt:
    """A field as a checkpoint gives it back."""
    return schema_from_dict({"prompt": json.loads(json.dumps(field.schema()))}, SPEC.fields)[
        "prompt"
    ]


def test_values_are_the_encoders_last_hidden_states_and_mask(encoder, tmp_path):
    field, values = encoded(CAPTIONS, encoder, tmp_path / "cache")
    network = transformers.BertModel.from_pretrained(encoder.folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(encoder.folder)(
        CAPTIONS, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        truth = network(words.input_ids, words.attention_mask).last_hidden_state
    tokens, mask, pooled = field.unpack(values[torch.arange(4)])
    n = truth.shape[1]
    assert (field.length, field.width, pooled.shape[1]) == (16, 16, 0) and not mask[:, n:].any()
    assert torch.equal(mask[:, :n], words.attention_mask > 0)
    assert (tokens[:, :n] - truth)[mask[:, :n]].abs().max() < 2e-3  # float16
    assert torch.equal(values[torch.tensor([0])][0], field.parse("  a red\nheart "))


def test_a_field_travels_with_null_and_examples_and_shows_their_texts(encoder, tmp_path):
    field, values = encoded(CAPTIONS, encoder, tmp_path / "cache")
    field = replace(field, captions=values)
    there = travelled(field.with_examples(values[torch.arange(4)]))
    assert there == field.with_examples(values[torch.arange(4)]) and there.place is None
    assert torch.equal(there.null(2), field.null(2)) and there.null(1).any()
    given = parse_condition({"prompt": there}, {}, 6)
    assert torch.equal(given["prompt"], values[torch.tensor([0, 1, 2, 3, 0, 1])])
    assert shown({"prompt": there}, given, 5) == {"prompt": "a blue star"}
    assert there.show(there.null(1)[0]) == ""
    assert there.show(there.null(1)[0] * 3).startswith("the prompt ")


def test_several_prompts_and_what_is_none(encoder, tmp_path):
    field = prompt_of(encoder, tmp_path / "cache")
    one, two = field.parse("a red heart"), field.parse("a blue star")
    for given in ('["a red heart", "a blue star"]', ["a red heart", "a blue star"]):
        found = parse_condition({"prompt": field}, {"prompt": given}, 3)["prompt"]
        assert torch.equal(found, torch.stack([one, two, one]))
    field.check("large heart")
    for wrong, said in (
        ("  ", "is empty"),
        ("red " * 15, "has 17 tokens, more than the 16"),
        ("a red \ud83d", "has half of a character"),
    ):
        for read in (field.parse, field.check):
            with pytest.raises(UserError, match=said):
                read(wrong)


def test_without_its_own_encoder_a_prompt_is_refused(encoder, tmp_path):
    field = travelled(prompt_of(encoder, tmp_path / "cache"))
    with pytest.raises(UserError, match=r"name it by data\.text_encoder="):
        field.parse("red square")
    other = str(texts.bert(tmp_path / "other", seed=1))
    config = ImageConfig(modality="image")
    config.data.text_encoder = other
    with pytest.raises(UserError, match="another text encoder"):
        field.configured(config)
    config.data.text_encoder = encoder.name
    assert field.configured(config).parse("red square").any()
    assert encoder_of(config).identity == encoder.identity


def test_no_encoder_is_left_in_memory_once_captions_are_encoded(encoder, tmp_path):
    network = weakref.ref(encoder.loaded.network)
    _, values = encoded(CAPTIONS, encoder, tmp_path / "cache")
    gc.collect()
    assert network() is None and values[torch.arange(4)].any()


def test_captions_are_cut_at_the_encoders_length_which_is_said_once(encoder, tmp_path, caplog):
    long = [f"{word} " * 40 for word in ("red", "blue", "green")]
    _, values = encoded([*CAPTIONS, *long], encoder, tmp_path / "cache")
    assert len(caplog.records) == 1 and "3 captions are longer than the 16" in caplog.text
    assert values.field.unpack(values[torch.tensor([5])]).mask.all()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("pickle", r"no model\.safetensors"),
        ("config", "cannot be read"),
        ("index", r"model\.safetensors\.index\.json cannot be read"),
        ("gone", "is no folder"),
    ],
)
def test_an_encoder_that_cannot_be_read_is_one_sentence(tmp_path, damage, said):
    folder = texts.bert(tmp_path / "bert")
    if damage == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif damage == "index":
        (folder / "model.safetensors.index.json").write_text("{}")
    elif damage == "config":
        (folder / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match=said) as error:
        prompt_of(TextEncoder(str(folder if damage != "gone" else tmp_path / "x"), KEYS[0]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", ["", "AAAA", "!", "a" * 400])
def test_a_strangers_examples_are_refused(encoder, tmp_path, values):
    plain = prompt_of(encoder, tmp_path / "cache").schema()
    with pytest.raises(ValueError):
        Prompt.from_schema({**plain, "examples": [["a", values]]})


def test_clip_gives_its_pooled_vector_and_t5_its_encoder(tmp_path):
    folder = texts.pipeline("FluxPipeline", tmp_path / "flux")
    for ending, pooled in (("", 16), ("_2", 0)):
        alone = folder / f"text_encoder{ending}"
        for path in (folder / f"tokenizer{ending}").iterdir():
            path.rename(alone / path.name)
        field = prompt_of(TextEncoder(str(alone), KEYS[0]), tmp_path / "cache")
        value = field.parse("a red heart")
        assert field.pooled == pooled and field.unpack(value[None]).mask.sum() == 5


def test_a_pipeline_is_the_encoder_of_its_configuration_unless_it_has_none(tmp_path):
    folder = texts.pipeline("PixArtAlphaPipeline", tmp_path / "pipeline")
    config = SimpleNamespace(pretrained=str(folder), data=SimpleNamespace(text_encoder=None))
    found = encoder_of(config)
    assert (found.name, found.key) == (str(folder), "pretrained")
    config.data.text_encoder = str(texts.bert(tmp_path / "bert"))
    assert encoder_of(config).key == "data.text_encoder"
    config.data.text_encoder = None
    (folder / "text_encoder").rename(tmp_path / "elsewhere")
    assert encoder_of(config) is None
    assert encoder_of(SimpleNamespace()) is None


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"text_encoder": ["os", "system"]}, "only transformers' own classes are loaded"),
        ({"text_encoder": ["transformers", "pipeline"]}, "no model of transformers"),
        ({"_class_name": "AutoencoderKL"}, "no pipeline with prompts"),
        ({"_class_name": ["stranger", "x"]}, "no pipeline with prompts"),
    ],
)
def test_a_pipeline_names_no_code_that_is_run(tmp_path, index, said):
    folder = texts.pipeline("PixArtAlphaPipeline", tmp_path / "pipeline")
    plain = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**plain, **index}))
    with pytest.raises(UserError, match=said):
        prompt_of(TextEncoder(str(folder), "pretrained"), tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "there", "null", "pooled"),
    [
        ("PixArtAlphaPipeline", 5, 2, 0),
        ("SanaPipeline", 5, 2, 0),
        ("StableDiffusionPipeline", 77, 77, 0),
        ("StableDiffusionXLPipeline", 77, 77, 8),
        ("FluxPipeline", 512, 512, 16),
        ("ZImagePipeline", 5, 2, 0),
        ("WanPipeline", 512, 512, 0),
    ],
)
def test_a_pipelines_prompt_is_what_it_gives_its_transformer(tmp_path, kind, there, null, pooled):
    encoder = TextEncoder(str(texts.pipeline(kind, tmp_path / kind)), "pretrained")
    field = prompt_of(encoder, tmp_path / "cache")
    tokens, mask, also = field.unpack(torch.stack([field.parse("a red heart"), field.null(1)[0]]))
    assert mask.sum(1).tolist() == [there, null] and also.shape[1] == pooled
    pipeline, called = encoder.loaded.pipeline, {"device": torch.device("cpu")}
    if kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        called |= {"num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    if kind in ("SanaPipeline", "WanPipeline"):  # whose call has other defaults
        names = ("max_sequence_length", "complex_human_instruction")
        given = inspect.signature(type(pipeline).__call__).parameters
        called |= {name: given[name].default for name in names if name in given}
    with torch.no_grad():
        found = pipeline.encode_prompt(prompt="a red heart", **called)
    first = found[0][0] if isinstance(found[0], list) else found[0][0][mask[0, : found[0].shape[1]]]
    assert (tokens[0][mask[0]] - first).abs().max() < 4e-3
    if kind == "StableDiffusionXLPipeline":  # whose negative prompt is zeros where none is given
        assert not field.null(1)[:, field.length :].any()
