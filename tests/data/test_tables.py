"""Media and captions in Parquet files and saved data sets."""

import io
import pickle

import numpy as np
import pytest
import texts
from PIL import Image

from modalities.image.folder import decode_file
from scm_core.base.errors import UserError
from scm_core.data.captions import captioned

datasets = pytest.importorskip("datasets")


def table(n, start=0, **changed):
    """Pictures of one grey level each, as bytes, and what they show."""
    rows = {"image": [], "caption": []}
    for i in range(start, start + n):
        content = io.BytesIO()
        Image.new("RGB", (8, 8), (i, i, i)).save(content, "PNG")
        rows["image"].append({"bytes": content.getvalue(), "path": f"{i}.png"})
        rows["caption"].append(f"level {i}")
    features = {"image": datasets.Image(), "caption": datasets.Value("string")}
    return datasets.Dataset.from_dict({**rows, **changed}, features=datasets.Features(features))


def saved(folder, form):
    train, test = table(20), table(4, start=50)
    if form == "saved":
        datasets.DatasetDict(train=train, test=test).save_to_disk(folder)
    elif form == "one":
        train.save_to_disk(folder)
    else:
        (folder / "data").mkdir(parents=True)
        train.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
        test.to_parquet(folder / "data" / "validation-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("form", ["saved", "parquet", "one"])
def test_rows_are_read_in_place_with_their_captions_and_split(tmp_path, form):
    folder = saved(tmp_path / form, form)
    classes, held, captions = captioned(folder, set(), "image")
    assert [*classes.values()] == [list(captions)]
    assert len(captions) == (20 if form == "one" else 24) and len(held) == (
        1 if form == "one" else 4
    )
    for row, caption in captions.items():
        level = np.unique(decode_file(row, None, 3)).tolist()
        assert caption == f"level {level[0]}" and len(level) == 1
        assert form == "one" or (level[0] >= 50) == (row in held)
        assert row.stat().st_size == len(row.open().read())
    copied = pickle.loads(pickle.dumps(list(captions)))
    assert copied == list(captions) and copied[3].open().read() == [*captions][3].open().read()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"caption": ["a", " ", "c"]}, "00000001 has an empty caption"),
        ({"image": [None] * 3}, "00000000 holds no bytes"),
    ],
)
def test_a_row_without_caption_or_bytes_is_a_sentence(tmp_path, changed, said):
    table(3, **changed).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match=said):
        for row in captioned(tmp_path / "set", set(), "image")[2]:
            row.open()


def test_a_table_without_captions_names_its_columns_and_a_damaged_one_is_said(tmp_path):
    table(3).rename_column("caption", "what").save_to_disk(tmp_path / "set")
    with pytest.raises(
        UserError, match="none called text or caption or prompt: it has image, what"
    ):
        captioned(tmp_path / "set", set(), "image")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot be read as a table"):
        captioned(tmp_path / "other", set(), "image")


def test_captioned_pictures_of_a_table_are_trained_on(tmp_path):
    pytest.importorskip("transformers")
    data = texts.prepared(saved(tmp_path / "set", "saved"), texts.bert(tmp_path / "bert"))
    assert data.shape == (3, 8, 8) and (len(data.train_set), len(data.test_set)) == (20, 4)
    levels = data.test_set.split.images[:, 0, 0, 0].tolist()
    assert data.test_set.split.prompts.captions == [f"level {i}" for i in levels]
