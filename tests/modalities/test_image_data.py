"""The image data module and decoder on real images: Fashion-MNIST and CIFAR-10's format."""

import gzip
import hashlib
import pickle
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from images import everything, prepared, raw
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler

from modalities.common import fashion_mnist
from modalities.image import cifar10
from modalities.image.codec import ImageCodec
from scm_core.base.errors import UserError


def test_fashion_mnist_is_standardised_by_its_training_split(fashion_root):
    data = prepared(root=fashion_root, batch_size=50)
    x, labels = everything(data.train_dataloader())
    assert data.shape == (1, 28, 28) and x.shape == (400, 1, 28, 28) and x.dtype == torch.float32
    assert abs(x.double().mean()) < 1e-5 and abs(x.double().std(correction=0) - 0.5) < 1e-5
    assert labels.bincount().tolist() == [40] * 10 and labels.dtype == torch.int64
    values = raw(fashion_root, "train")[0].double() / 127.5 - 1
    assert data.statistics["mean"] == pytest.approx([values.mean().item()], abs=1e-12)
    assert data.statistics["std"] == pytest.approx([values.std(correction=0).item()], abs=1e-12)
    assert (
        data.condition["label"].classes == 10 and data.condition["label"].names[9] == "ankle-boot"
    )


def test_held_out_images_are_the_test_split_and_decode_to_its_pixels(fashion_root):
    data = prepared(root=fashion_root, batch_size=64)
    x, labels = everything(data.val_dataloader())
    images, truth = raw(fashion_root, "t10k")
    decoder = ImageCodec(data.statistics)
    assert torch.equal(decoder.decode(x), images) and torch.equal(labels, truth)
    assert torch.allclose(decoder.encode(images), x, atol=1e-6)


def test_training_order_follows_the_seed_and_keeps_labels_with_images(fashion_root):
    data = prepared(root=fashion_root, batch_size=150)
    runs = []
    for seed in (1, 1, 2):
        loader = data.train_dataloader()
        loader.sampler.seed = seed
        runs.append(everything(loader))
    assert not torch.equal(everything(loader)[0], runs[2][0])  # the next epoch has another order
    assert torch.equal(runs[0][0], runs[1][0]) and not torch.equal(runs[0][0], runs[2][0])
    assert len(runs[0][1]) == 300  # full batches only
    images, labels = raw(fashion_root, "train")
    label_of = {
        image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)
    }
    seen = ImageCodec(data.statistics).decode(runs[0][0])
    assert [label_of[image.numpy().tobytes()] for image in seen] == runs[0][1].tolist()
    assert len({image.numpy().tobytes() for image in seen}) == 300


def test_processes_share_the_training_images_without_overlap(fashion_root):
    train = prepared(root=fashion_root, batch_size=50).train_dataloader()
    parts = []
    for rank in (0, 1):
        sampler = DistributedSampler(train.dataset, num_replicas=2, rank=rank)
        part = DataLoader(train.dataset, 50, sampler=sampler, collate_fn=train.collate_fn)
        parts.append({image.numpy().tobytes() for image in everything(part)[0]})
    assert len(parts[0]) == len(parts[1]) == 200 and not parts[0] & parts[1]


def test_flip_mirrors_about_half_of_the_training_images_only(fashion_root):
    plain, mirrored = (prepared(root=fashion_root, flip=flip) for flip in (False, True))
    before, after = (data.train_set.__getitems__(range(400)).x for data in (plain, mirrored))
    same = (before == after).flatten(1).all(1)
    assert torch.equal(after[~same], before[~same].flip(-1)) and 150 < same.sum() < 250
    held_out = (everything(data.val_dataloader())[0] for data in (plain, mirrored))
    assert torch.equal(*held_out)


def test_size_resizes_any_set(fashion_root):
    assert prepared(root=fashion_root, size=32).shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"batch_size": 401}, "400 images, fewer than data.batch_size=401"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"name": "fashion"}, "fashion_mnist, cifar10, folder"),
        ({"root": "nowhere"}, "data.root=nowhere holds no train-images"),
        ({"size": 0}, "data.size=0"),
        ({"name": "folder", "root": "nowhere"}, "data.root=nowhere is not a folder"),
        ({"name": "folder", "root": None}, "needs the folder"),
        ({"name": "folder", "channels": 2}, "data.channels=2"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(fashion_root, config, sentence):
    with pytest.raises(UserError, match=sentence):
        prepared(**{"root": fashion_root, **config})


@pytest.mark.parametrize("damage", ["truncated", "not idx", "other labels", "missing"])
def test_a_damaged_idx_file_is_named(fashion_root, tmp_path, damage):
    root = shutil.copytree(fashion_root, tmp_path / "set")
    path = root / "train-images-idx3-ubyte.gz"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:50_000])
    elif damage == "not idx":
        path.write_bytes(gzip.compress(b"no images"))
    elif damage == "other labels":
        path = root / "train-labels-idx1-ubyte.gz"
        shutil.copy(root / "t10k-labels-idx1-ubyte.gz", path)
    else:
        path = root / "t10k-images-idx3-ubyte.gz"
        path.unlink()
    with pytest.raises(UserError, match="do not belong" if damage == "other labels" else path.stem):
        prepared(root=str(root))


def test_torchvision_layout_is_found(fashion_root, tmp_path):
    raw_folder = tmp_path / "FashionMNIST" / "raw"
    raw_folder.mkdir(parents=True)
    for path in Path(fashion_root).glob("*.gz"):
        (raw_folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    given, own = (prepared(root=str(root)).train_set for root in (tmp_path, fashion_root))
    assert torch.equal(given.split.images, own.split.images)


def test_an_interrupted_download_goes_on(fashion_root, tmp_path, monkeypatch):
    def fetched(url, download_root, filename, md5):
        content = Path(fashion_root, filename).read_bytes()
        Path(download_root, filename).write_bytes(content)
        Path(download_root, filename).with_suffix("").write_bytes(gzip.decompress(content))

    monkeypatch.setattr(fashion_mnist, "CACHE", tmp_path)
    monkeypatch.setattr(fashion_mnist, "FOLDERS", ())
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", fetched)
    begun = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte.gz"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(Path(fashion_root, begun.name).read_bytes()[:1000])
    given, own = (prepared(root=root).train_set for root in (None, fashion_root))
    assert torch.equal(given.split.images, own.split.images)


def test_without_internet_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(fashion_mnist, "CACHE", tmp_path)
    monkeypatch.setattr(cifar10, "CACHE", tmp_path)
    monkeypatch.setattr(fashion_mnist, "FOLDERS", ())
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", unreachable)
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", unreachable)
    with pytest.raises(UserError, match="apt-get install dataset-fashion-mnist.*data.root="):
        prepared()
    with pytest.raises(UserError, match="cifar-10-python.tar.gz.*data.root="):
        prepared(name="cifar10")


def test_cifar10_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (6, 10, 3072), dtype=np.uint8)

    def written(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((base / name).read_bytes()).hexdigest()

    batches = [
        written(f"batch_{i}", {"data": part, "labels": list(range(10))})
        for i, part in enumerate(images)
    ]
    names = [f"class {i}" for i in range(10)]
    meta, md5 = written("batches.meta", {"label_names": names})
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", batches[:5])
    monkeypatch.setattr(cifar, "test_list", batches[5:])
    monkeypatch.setattr(cifar, "meta", {"filename": meta, "key": "label_names", "md5": md5})
    data = prepared(name="cifar10", root=str(tmp_path), batch_size=10)
    x, labels = everything(data.val_dataloader())
    pixels = ImageCodec(data.statistics).decode(x)
    assert torch.equal(pixels, torch.from_numpy(images[5]).view(10, 3, 32, 32))
    assert labels.tolist() == list(range(10)) and data.condition["label"].names == tuple(names)
    assert len(data.train_set) == 50 and len(data.statistics["mean"]) == 3


def test_the_decoder_rounds_clamps_and_saves(tmp_path):
    decoder = ImageCodec({"mean": [0.2, -0.4, 0.0], "std": [0.3, 0.9, 1.0]})
    media = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    x = decoder.encode(media)
    assert torch.equal(decoder.decode(x), media)
    assert decoder.decode(x + 100).min() == 255 and decoder.decode(x - 100).max() == 0
    path = decoder.save(media[0], tmp_path / "sample")
    assert path == tmp_path / "sample.png"
    assert np.array_equal(np.asarray(Image.open(path)), media[0].permute(1, 2, 0).numpy())
    picture = decoder.preview(media)
    assert picture.dtype == torch.uint8 and picture.ndim == 3 and picture.shape[2] == 3
