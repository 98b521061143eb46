"""What images are compared with, and the classifier that scores them."""

import pytest
import torch

from modalities.image import scorer as scoring
from modalities.image.codec import ImageCodec
from modalities.image.data import ImageData, ImageDataModule
from scm_core.evaluation import classifier


@pytest.fixture(scope="module")
def images(fashion_root):
    data = ImageDataModule(ImageData(root=fashion_root, batch_size=50))
    data.setup()
    return data


def test_real_images_are_the_decoded_samples(images):
    codec = ImageCodec(images.statistics)
    for split, loader in (("train", images.train_dataloader), ("test", images.val_dataloader)):
        torch.manual_seed(3)
        real = list(images.real(split))
        torch.manual_seed(3)
        for (media, condition), batch in zip(real, loader(), strict=True):
            assert media.dtype == torch.uint8 and torch.equal(media, codec.decode(batch.x))
            assert torch.equal(condition["label"], batch.condition["label"])


def test_the_scorer_learns_once_and_is_kept(images, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "EPOCHS", 15)
    state = torch.get_rng_state()
    scorer = scoring.ClassScorer(images, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    test = images.test_set.split
    right = scorer(test.images, {"label": test.labels})["class_accuracy"]
    assert right.shape == test.labels.shape and right.mean() > 0.65
    wrong = scorer(test.images, {"label": (test.labels + 1) % 10})["class_accuracy"]
    assert wrong.mean() < 0.2
    monkeypatch.setattr(classifier, "train", None)  # the second time there is nothing to train
    again = scoring.ClassScorer(images, tmp_path)
    assert torch.equal(again(test.images, {"label": test.labels})["class_accuracy"], right)


def test_the_scorer_is_the_same_whatever_batches_a_model_trains_on(images, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "STEPS", 3)
    other = ImageDataModule(ImageData(root=images.config.root, batch_size=7))
    other.setup()
    one, two = (
        scoring.ClassScorer(data, tmp_path / str(data.config.batch_size)).network.state_dict()
        for data in (images, other)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 47), (4, 5, 64)])
def test_the_scorer_takes_images_of_any_size(shape):
    network = scoring.Classifier(shape[0], 7)
    logits = network(torch.randint(256, (3, *shape), dtype=torch.uint8))
    assert logits.shape == (3, 7) and logits.isfinite().all()
