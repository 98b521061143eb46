"""What images are compared with, and the classifier that judges them."""

import pytest
import torch

from modalities.image import judge as judges
from modalities.image.data import ImageData, ImageDataModule
from modalities.image.decoder import ImageDecoder
from scm_core.evaluation import classifier


@pytest.fixture(scope="module")
def images(fashion_root):
    data = ImageDataModule(ImageData(root=fashion_root, batch_size=50))
    data.setup()
    return data


def test_real_images_are_the_decoded_samples(images):
    decoder = ImageDecoder(images.statistics)
    for split, loader in (("train", images.train_dataloader), ("test", images.val_dataloader)):
        torch.manual_seed(3)
        real = list(images.real(split))
        torch.manual_seed(3)
        for (media, condition), batch in zip(real, loader(), strict=True):
            assert media.dtype == torch.uint8 and torch.equal(media, decoder.decode(batch.x))
            assert torch.equal(condition["label"], batch.condition["label"])


def test_the_judge_learns_once_and_is_kept(images, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "EPOCHS", 15)
    state = torch.get_rng_state()
    judge = judges.ClassJudge(images, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    test = images.test_set.split
    right = judge(test.images, {"label": test.labels})["class_accuracy"]
    assert right.shape == test.labels.shape and right.mean() > 0.65
    wrong = judge(test.images, {"label": (test.labels + 1) % 10})["class_accuracy"]
    assert wrong.mean() < 0.2
    monkeypatch.setattr(classifier, "train", None)  # the second time there is nothing to train
    again = judges.ClassJudge(images, tmp_path)
    assert torch.equal(again(test.images, {"label": test.labels})["class_accuracy"], right)


def test_the_judge_is_the_same_whatever_batches_a_model_trains_on(images, tmp_path, monkeypatch):
    monkeypatch.setattr(judges, "STEPS", 3)
    other = ImageDataModule(ImageData(root=images.config.root, batch_size=7))
    other.setup()
    one, two = (
        judges.ClassJudge(data, tmp_path / str(data.config.batch_size)).network.state_dict()
        for data in (images, other)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 47), (4, 5, 64)])
def test_the_judge_takes_images_of_any_size(shape):
    network = judges.Classifier(shape[0], 7)
    logits = network(torch.randint(256, (3, *shape), dtype=torch.uint8))
    assert logits.shape == (3, 7) and logits.isfinite().all()
