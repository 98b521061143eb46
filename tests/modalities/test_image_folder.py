"""Any folder of images as a data set: classes, splits, broken files, kinds of pictures."""

import logging
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from images import everything, prepared, raw
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from modalities.image import folder
from modalities.image.codec import ImageCodec
from scm_core.base.errors import UserError


@pytest.fixture
def tree(fashion_root, tmp_path) -> Path:
    """100 real images of each of two classes in PNG, JPEG and WebP."""
    images, _ = raw(fashion_root, "train")
    for i in range(200):
        name = ("boots", "shirts")[i % 2]
        (tmp_path / name).mkdir(exist_ok=True)
        suffix = ("png", "png", "jpg", "webp")[i // 2 % 4]
        Image.fromarray(images[i, 0].numpy()).save(tmp_path / name / f"{i}.{suffix}")
    return tmp_path


def test_a_folder_gives_its_classes_and_pixels(tree, fashion_root):
    data = prepared(name="folder", root=str(tree), channels=1, batch_size=10)
    assert data.shape == (1, 28, 28) and data.condition["label"].names == ("boots", "shirts")
    x, labels = everything(data.val_dataloader())
    assert labels.tolist() == [0] * 5 + [1] * 5 and len(data.train_set) == 190
    truth = raw(fashion_root, "train")[0][:200]
    seen = torch.cat([data.train_set.split.images, data.test_set.split.images])
    classes = torch.cat([data.train_set.split.labels, data.test_set.split.labels])
    gap = (seen[:, None].float() - truth[None].float()).abs().mean((2, 3, 4))
    nearest = gap.argmin(1)
    assert nearest.unique().numel() == 200 and torch.equal(nearest % 2, classes)
    assert (gap.min(1).values == 0).sum() >= 100  # PNG is exact; JPEG and WebP are near
    assert gap.min(1).values.max() < 12


def test_the_same_files_are_held_out_each_time_wherever_the_folder_lies(tree, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy") / "set"
    shutil.copytree(tree, copy)
    one, two = (prepared(name="folder", root=str(root), channels=1) for root in (tree, copy))
    assert torch.equal(one.test_set.split.images, two.test_set.split.images)


@pytest.mark.parametrize(("held_out", "classes"), [("test", True), ("val", True), ("test", False)])
def test_train_and_test_folders_are_the_splits(tree, held_out, classes):
    for path in list(tree.glob("*/*")):
        part = held_out if path.stem.endswith("1") else "train"
        home = tree / part / path.parent.name if classes else tree / part
        home.mkdir(parents=True, exist_ok=True)
        path.rename(home / path.name)
    data = prepared(name="folder", root=str(tree), channels=3, batch_size=16)
    assert (len(data.train_set), len(data.test_set)) == (180, 20) and data.shape == (3, 28, 28)
    assert data.condition["label"].names == (("boots", "shirts") if classes else ("all",))


def test_a_train_folder_alone_is_split_like_any_other(tree):
    for name in ("boots", "shirts"):
        shutil.copytree(tree / name, tree / "train" / name)
        shutil.rmtree(tree / name)
    data = prepared(name="folder", root=str(tree))
    assert (len(data.train_set), len(data.test_set)) == (190, 10)
    assert data.condition["label"].names == ("boots", "shirts")


def test_a_class_that_is_only_in_test_is_refused(tree):
    for home in ("train/boots", "test/hats"):
        shutil.copytree(tree / "boots", tree / home)
    with pytest.raises(UserError, match="test of .* classes that train lacks: hats"):
        prepared(name="folder", root=str(tree))


def test_a_truncated_file_is_named_and_skipped(tree, caplog):
    path = tree / "boots" / "0.png"
    path.write_bytes(path.read_bytes()[:-120])
    with caplog.at_level(logging.WARNING):
        data = prepared(name="folder", root=str(tree), channels=1, batch_size=16)
    assert len(data.train_set) + len(data.test_set) == 199
    assert str(path) in caplog.text and "skipped 1 of 200 images" in caplog.text


def test_many_broken_files_stop_with_their_list(tree):
    for name in ("0.png", "4.jpg", "6.webp"):
        path = tree / "boots" / name
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="3 of 200 .*: boots/0.png, boots/4.jpg, boots/6.webp"):
        prepared(name="folder", root=str(tree))


def test_folders_without_a_clear_meaning_are_refused(tree):
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match="no image .of bmp, .*jpeg, jpg, png, webp"):
        prepared(name="folder", root=str(tree / "empty"))
    shutil.copy(tree / "boots" / "0.png", tree / "loose.png")
    with pytest.raises(UserError, match="beside class folders .loose.png"):
        prepared(name="folder", root=str(tree))


def test_images_of_other_sizes_need_data_size(tree):
    Image.new("RGB", (60, 40)).save(tree / "boots" / "wide.png")
    with pytest.raises(UserError, match="data.size="):
        prepared(name="folder", root=str(tree))
    assert prepared(name="folder", root=str(tree), size=16).shape == (3, 16, 16)


def test_every_kind_of_picture_has_its_channels(tmp_path):
    grey = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
    clear = np.dstack([grey, grey, grey, np.zeros_like(grey)])
    pictures = {
        "grey": Image.fromarray(grey),
        "deep": Image.fromarray(grey.astype(np.uint16) * 257),
        "clear": Image.fromarray(clear),
        "palette": Image.fromarray(grey).convert("P"),
    }
    decoded = {}
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        for channels in (1, 3, 4):
            image = folder.decode_file(tmp_path / f"{name}.png", None, channels)
            assert image.shape == (channels, 16, 16)
            decoded[name, channels] = image
    truth = torch.from_numpy(grey)
    for name in ("grey", "deep", "palette"):
        assert torch.equal(decoded[name, 1][0], truth) and torch.equal(decoded[name, 3][2], truth)
        assert (decoded[name, 4][3] == 255).all()
    assert (decoded["clear", 3] == 255).all() and (decoded["clear", 4][3] == 0).all()
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pictures["grey"].save(turned, exif=exif, quality=95)
    assert (folder.decode_file(turned, None, 1)[0].float() - truth.flip(0, 1)).abs().max() < 6


def test_opaque_alpha_stays_opaque(tmp_path):
    for i in range(20):
        Image.new("RGBA", (8, 8), (12 * i, 255 - i, i * i % 256, 255)).save(tmp_path / f"{i}.png")
    data = prepared(name="folder", root=str(tmp_path), channels=4, batch_size=4)
    x, _ = everything(data.val_dataloader())
    assert (x[:, 3] == 0).all()
    assert torch.equal(ImageCodec(data.statistics).decode(x), data.test_set.split.images)


def test_a_folder_too_large_for_memory_gives_the_same_batches(tree, monkeypatch):
    config = {"name": "folder", "root": str(tree), "channels": 1, "size": 20, "batch_size": 5}
    kept = prepared(**config)
    monkeypatch.setattr(folder, "MEMORY", 0)
    decoded = prepared(**config, workers=1)
    assert isinstance(decoded.test_set.split.images, folder.Files)
    assert decoded.statistics == kept.statistics
    assert torch.equal(*(everything(data.val_dataloader())[0] for data in (kept, decoded)))


def exif(*tags: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of (tag, type, count, 4 bytes) each."""
    entries = b"".join(struct.pack(">HHI4s", *tag) for tag in tags)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4)


TURNED = (0x0112, 3, 1, b"\0\3\0\0")  # upside down


@pytest.mark.filterwarnings("ignore:(Truncated|Corrupt)")
@pytest.mark.parametrize(
    ("content", "turned"),
    [
        (exif(TURNED, (0x0128, 2, 4, b"inch"), (0x0213, 2, 4, b"abc\0")), True),
        (exif((0x011A, 2, 4, b"72\0\0"), TURNED), True),
        (exif((0x0112, 5, 1, struct.pack(">I", 26))) + struct.pack(">II", 3, 1), True),
        (exif((0x0112, 2, 4, b"down")), False),
        (exif((0x0112, 2, 99_999, b"\xff\xff\xff\0")), False),
        (exif(TURNED)[:18], False),
        (b"Exif\0\0MM", False),
        (b"Exif\0\0" + b"\xff" * 50, False),
    ],
    ids=["units", "resolution", "rational", "text", "far text", "cut", "short", "noise"],
)
def test_odd_exif_costs_no_picture(tmp_path, content, turned):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 250
    for suffix in ("jpg", "png", "webp"):
        Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=content)
        decoded = folder.decode_file(tmp_path / f"a.{suffix}", None, 3).float()
        assert (decoded[:, 12:].mean() > 200) == turned and (decoded[:, :4].mean() > 200) != turned


@pytest.mark.parametrize("size", [9, 40])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_what_is_transparent_lends_no_colour(tmp_path, size, kind):
    """A disc with soft edges over transparent black, which stays of one colour wherever it is."""
    y, x = np.mgrid[-1:1:24j, -1:1:24j]
    alpha = ((1 - np.hypot(x, y)) * 512).clip(0, 255).astype(np.uint8)
    if kind == "P":
        alpha = 255 * (alpha > 127).astype(np.uint8)
    colour = (200, 200, 200) if kind == "LA" else (200, 40, 0)
    picture = np.dstack([np.where(alpha, level, 0).astype(np.uint8) for level in colour] + [alpha])
    image = Image.fromarray(picture)
    image = image.quantize(2) if kind == "P" else image.convert(kind)
    image.save(tmp_path / "a.png")
    decoded = folder.decode_file(tmp_path / "a.png", size, 4)
    assert decoded.shape == (4, size, size) and decoded[3, size // 2, size // 2] == 255
    assert 0 < (decoded[3] > 0).sum() < size * size
    seen = decoded[:3, decoded[3] > 0].int()
    assert (seen - torch.tensor(colour)[:, None]).abs().max() <= 1
    white = folder.decode_file(tmp_path / "a.png", size, 3).float()
    opacity = decoded[3] / 255
    expected = decoded[:3] * opacity + 255 * (1 - opacity)
    assert (white - expected).abs().max() < 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_large_colour_profile_costs_no_picture(tmp_path, suffix):
    path, info = tmp_path / f"a.{suffix}", PngInfo()
    info.add_text("Comment", "x" * 2_000_000, zip=True)
    info.add_itxt("Description", "y" * 2_000_000, zip=True)
    texts = {"pnginfo": info} if suffix == "png" else {}
    Image.new("RGB", (8, 8), "red").save(path, icc_profile=bytes(2_000_000), **texts)
    assert folder.decode_file(path, None, 3).float().mean((1, 2))[0] > 250
