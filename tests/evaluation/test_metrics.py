"""Metrics against closed forms and naive code, and the images' feature extractor."""

import sys

import pytest
import torch

from modalities.common.efficientnet import EfficientNetLite0
from scm_core.base.errors import UserError
from scm_core.evaluation.metrics import frechet_distance, kernel_distance, precision_recall


def whitened(n, d):
    """Samples (n, d) whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = torch.randn(n, d, dtype=torch.float64)
    x = x - x.mean(0)
    return torch.linalg.qr(x).Q * (n - 1) ** 0.5


def covariance_root(*eigenvalues):
    """R with R^T R of these eigenvalues, along random directions."""
    rotation = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues)).double()).Q
    return torch.tensor(eigenvalues).double().sqrt()[:, None] * rotation


def test_frechet_of_gaussians_that_share_their_axes():
    a = whitened(50, 3) * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([1.0, 0.0, 0.0])
    b = whitened(80, 3) * torch.tensor([4.0, 2.0, 1.0]) + torch.tensor([0.0, 0.0, 2.0])
    # |mean difference|^2 + sum of squared differences of the standard deviations
    assert frechet_distance(a, b) == pytest.approx(5 + 9 + 0 + 4, rel=1e-12)


def test_frechet_of_general_gaussians():
    root_a, root_b = covariance_root(0.5, 2.0, 3.0, 0.1), covariance_root(1.0, 4.0, 0.2, 0.7)
    a, b = whitened(40, 4) @ root_a, whitened(30, 4) @ root_b
    product = root_a.T @ root_a @ root_b.T @ root_b
    cross = torch.linalg.eigvals(product).real.sqrt().sum()
    expected = root_a.square().sum() + root_b.square().sum() - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_of_one_set_with_itself_is_zero_although_its_covariance_is_singular():
    a = 100 * torch.randn(20, 64)
    assert frechet_distance(a, a[torch.randperm(20)]) < 1e-8
    assert frechet_distance(a, a + 3) == pytest.approx(64 * 9, rel=1e-6)


@pytest.mark.parametrize(
    "a, b", [((1, 4), (5, 4)), ((5, 4), (1, 4)), ((5, 4), (5, 3)), ((5,), (5,))]
)
def test_too_few_or_unlike_features_are_refused(a, b):
    for metric in (frechet_distance, kernel_distance, precision_recall):
        with pytest.raises(ValueError):
            metric(torch.randn(a), torch.randn(b))


def naive_kid(a, b):
    """The unbiased estimate as its definition has it: sums over pairs."""

    def k(x, y):
        return ((x @ y).item() / len(x) + 1) ** 3

    n = len(a)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    within = sum(k(a[i], a[j]) + k(b[i], b[j]) for i, j in pairs) / len(pairs)
    return within - 2 * sum(k(x, y) for x in a for y in b) / n**2


def test_kid_equals_the_naive_sum_over_pairs():
    a, b = torch.randn(9, 5, dtype=torch.float64), 1 + torch.randn(9, 5, dtype=torch.float64)
    mean, spread = kernel_distance(a, b, subsets=3)
    assert mean == pytest.approx(naive_kid(a, b), rel=1e-12)
    assert spread < 1e-12  # a subset of everything is always the same


def test_kid_has_no_bias_and_sees_a_shift():
    a, b = torch.randn(4000, 4), torch.randn(4000, 4)
    mean, spread = kernel_distance(a, b, subsets=100, subset_size=100)
    assert abs(mean) < 3 * spread / 100**0.5 + 0.01
    shifted, _ = kernel_distance(a, b + 1, subsets=20, subset_size=100)
    assert shifted > 1


def test_kid_follows_its_generator():
    a, b = torch.randn(100, 4), torch.randn(90, 4)
    draws = [
        kernel_distance(a, b, subset_size=20, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_precision_and_recall_of_sets_drawn_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii for k = 1: 1, 1, 2, 7
    fake = torch.tensor([[-1.0], [2.5], [2.6], [17.5]])  # radii for k = 1: 3.5, 0.1, 0.1, 14.9
    precision, recall = precision_recall(real, fake, k=1)
    assert precision == 3 / 4  # 17.5 lies outside 10 + 7
    assert recall == 1.0  # the lone 17.5 covers 3 and 10, -1 covers 0 and 1
    precision, recall = precision_recall(fake, real, k=1)
    assert (precision, recall) == (1.0, 3 / 4)


def test_mode_collapse_costs_recall_and_noise_costs_precision():
    real = torch.cat([torch.randn(1500, 2), torch.randn(1500, 2) + 100])
    precision, recall = precision_recall(real, torch.randn(1100, 2))  # more than one chunk
    assert precision > 0.95 and 0.4 < recall <= 0.5
    precision, recall = precision_recall(real, 1000 * torch.randn(1100, 2))
    assert precision < 0.05
    assert precision_recall(real, real.clone()) == (1.0, 1.0)


def test_precision_needs_more_samples_than_neighbours():
    with pytest.raises(ValueError, match="4 samples"):
        precision_recall(torch.randn(3, 2), torch.randn(9, 2), k=3)
    with pytest.raises(ValueError, match="k must be"):
        precision_recall(torch.randn(3, 2), torch.randn(9, 2), k=0)


@pytest.fixture(scope="module")
def extractor():
    return EfficientNetLite0(batch_size=4)


def test_features_of_grey_rgb_and_rgba_agree(extractor):
    grey = torch.randint(256, (6, 1, 28, 28), dtype=torch.uint8)
    features = extractor(grey)
    assert features.shape == (6, 1280) and features.dtype == torch.float32
    assert extractor.name == "efficientnet_lite0"
    rgb = grey.expand(-1, 3, -1, -1)
    opaque = torch.cat([rgb, torch.full_like(grey, 255)], 1)
    for same in (rgb, opaque):
        torch.testing.assert_close(extractor(same), features, rtol=1e-3, atol=1e-3)
    clear = torch.cat([rgb, torch.zeros_like(grey)], 1)
    white = extractor(torch.full_like(rgb, 255))
    torch.testing.assert_close(extractor(clear), white, rtol=1e-3, atol=1e-3)


def test_features_do_not_depend_on_the_batch(extractor):
    images = torch.randint(256, (6, 3, 20, 40), dtype=torch.uint8)
    each = torch.cat([extractor(image[None]) for image in images])
    torch.testing.assert_close(extractor(images), each, rtol=1e-3, atol=1e-3)


def test_features_tell_real_images_from_damaged_ones(extractor, fashion_root):
    from modalities.common.fashion_mnist import read_fashion_mnist

    train, test, _ = read_fashion_mnist(fashion_root, None)
    real, held_out = extractor(train.images[:200]), extractor(test.images)
    pooled = torch.nn.functional.avg_pool2d(test.images.float(), 3, 1, 1).to(torch.uint8)
    same = frechet_distance(real, held_out)
    assert frechet_distance(real, extractor(pooled)) > 1.3 * same


def test_a_missing_extractor_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'scm-core\[image\]'"):
        EfficientNetLite0()
