"""Captions beside media, in tables and in shards, and what is wrong with them."""

import json

import pytest
import texts

from scm_core.apps.sharing import pack
from scm_core.base.errors import UserError
from scm_core.data.captions import captioned

SUFFIXES = {".png"}


def found(folder):
    """Captions by the files' paths in the folder, and the paths that are held out."""
    _, held, captions = captioned(folder, SUFFIXES, "image")
    named = {file.relative_to(folder).as_posix(): text for file, text in captions.items()}
    return named, {file.relative_to(folder).as_posix() for file in held}


def test_text_files_beside_media_are_their_captions_wherever_they_lie(tmp_path, caplog):
    truth = texts.captioned(tmp_path / "one", 4) + texts.captioned(tmp_path / "other" / "deep", 3)
    path, caption = truth[0]
    path.with_suffix(".txt").write_text(f"\ufeff{caption}\n  on\ta square \n", "utf-8")
    (tmp_path / "one" / "README.txt").write_text("made by nobody")
    (tmp_path / "one" / "another.heic").touch()
    captions, held = found(tmp_path)
    assert caplog.messages == ["left out, as no image (of png): 1 of .heic"]
    assert captions == {
        path.relative_to(tmp_path).as_posix(): f"{text} on a square" if i == 0 else text
        for i, (path, text) in enumerate(truth)
    }
    assert len(held) == 1


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_table_names_the_captions_and_a_split_is_kept(tmp_path, form):
    truth = {}
    for part, n in (("train", 5), ("test", 2)):
        rows = [(path.name, text) for path, text in texts.pictures(tmp_path / part, n)]
        rows = [(name, f'{text}, "large"') for name, text in rows]
        truth |= {f"{part}/{name}": text for name, text in rows}
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
        if form == "csv":
            quoted = [text.replace('"', '""') for _, text in rows]
            lines = [f'{name},"{text}"' for (name, _), text in zip(rows, quoted, strict=True)]
            lines = ["file_name,caption", *lines]
        (tmp_path / part / f"metadata.{form}").write_text("\n".join(lines))
    captions, held = found(tmp_path)
    assert captions == truth and held == {"test/0.png", "test/1.png"}


def test_shards_hold_captions_as_folders_do(tmp_path):
    texts.captioned(tmp_path / "loose", 9)
    pack.main([f"root={tmp_path / 'loose'}", f"out={tmp_path / 'packed'}"])
    assert found(tmp_path / "loose") == found(tmp_path / "packed")


def broken(folder, what):
    (first, _), (second, _), *_ = texts.captioned(folder, 6)
    table = folder / "metadata.jsonl"
    if what == "orphan":
        second.unlink()
    elif what == "without":
        first.with_suffix(".txt").unlink()
        second.with_suffix(".txt").unlink()
    elif what == "none":
        for path in folder.glob("*.txt"):
            path.unlink()
    elif what == "empty":
        first.with_suffix(".txt").write_text(" \n")
    elif what == "bytes":
        first.with_suffix(".txt").write_bytes(b"\xff\xfe\x00")
    elif what == "stranger":
        table.write_text('{"file_name": "0.png", "text": "a"}\n{"file_name": "9.png", "text": "b"}')
    elif what == "line":
        table.write_text('{"file_name": "0.png", "text": "a"}\n\nnot json')
    elif what == "twice":
        table.write_text('{"file_name": "0.png", "text": "a"}\n{"file_name": "0.png", "text": "b"}')
    elif what == "list":
        table.write_text('{"file_name": "0.png", "text": ["a", "b"]}')
    elif what == "half":
        table.write_text('{"file_name": "0.png", "text": "a heart \\ud83d"}')
    elif what == "number":
        table.write_text(f'{{"file_name": "0.png", "text": "a", "id": {"1" * 5000}}}')
    elif what == "quote":
        (folder / "metadata.csv").write_text('file_name,text\n0.png,"a\n' + "1.png,b\n" * 20_000)
    elif what == "columns":
        (folder / "metadata.csv").write_text("file,text\n0.png,a\n")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("orphan", r"1\.txt is the caption of no image"),
        ("without", r"2 of 6 images have no caption, the first is .*0\.png"),
        ("none", r"has no captions: put a \.txt"),
        ("empty", r"0\.txt has an empty caption"),
        ("bytes", r"0\.txt cannot be read: it is not UTF-8"),
        ("stranger", r"metadata\.jsonl, line 2, is the caption of 9\.png, but there is no such"),
        ("line", r"metadata\.jsonl, line 3, is not a JSON object"),
        ("twice", r"metadata\.jsonl, line 2, is another caption of 0\.png: give each image one"),
        ("list", r"metadata\.jsonl, line 1, has a caption that is no text, but a list"),
        ("half", r"metadata\.jsonl, line 1, has half of a character in its caption"),
        ("number", r"metadata\.jsonl, line 1, is not a JSON object"),
        ("quote", r"metadata\.csv, line \d+, cannot be read: field larger than field limit"),
        ("columns", r"metadata\.csv, line 2, has no file_name"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, what, said):
    broken(tmp_path, what)
    with pytest.raises(UserError, match=said) as error:
        captioned(tmp_path, SUFFIXES, "image")
    assert "\n" not in str(error.value)
