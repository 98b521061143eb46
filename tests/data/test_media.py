"""Pictures that people look at: grids, PNG files and plots."""

import resource

import numpy as np
import pytest
import torch
from PIL import Image

from scm_core.base.errors import UserError
from scm_core.data.media import curve_images, image_grid, write_png
from scm_core.evaluation.plots import quality_time_plot


def test_a_grid_shows_every_image_in_reading_order():
    values = torch.arange(5, dtype=torch.uint8) * 50
    picture = image_grid(values.view(5, 1, 1, 1).expand(5, 1, 200, 200), columns=3)
    assert picture.shape == (2 * 202 + 2, 3 * 202 + 2, 3) and picture.dtype == torch.uint8
    centres = picture[101::202, 101::202]
    assert centres[..., 0].flatten().tolist() == [0, 50, 100, 150, 200, 255]
    assert (centres == centres[..., :1]).all() and (picture[0] == 255).all()


def test_tiny_images_are_magnified_without_new_colours():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    picture = image_grid(images)
    assert picture.shape == (2 * 66 + 2, 2 * 66 + 2, 3)
    assert torch.equal(picture[2:66:8, 2:66:8], images[0].permute(1, 2, 0))
    assert torch.equal(picture[9:66:8, 9:66:8], images[0].permute(1, 2, 0))


def test_transparent_pixels_lie_on_white():
    image = torch.full((1, 4, 400, 400), 100, dtype=torch.uint8)
    image[:, 3, :200], image[:, 3, 200:] = 0, 255
    picture = image_grid(image)
    assert (picture[:202] == 255).all() and (picture[202:402, 2:402] == 100).all()


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8), (1, 2, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="images must be"):
        image_grid(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_a_png_keeps_pixels(tmp_path, shape):
    picture = torch.randint(0, 256, shape, dtype=torch.uint8)
    path = write_png(picture, tmp_path / "new" / "a.png")
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), picture.squeeze(-1).numpy())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_png(torch.zeros(4, 4, 3, dtype=torch.uint8), tmp_path / "a.png")
    before = path.read_bytes()
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="a.png cannot be written: File too large"):
            write_png(noise, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot be written"):
        write_png(noise, path / "below-a-file.png")


def drawn(path, colour: str) -> int:
    """How many pixels of a picture have nearly this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - wanted).max(-1) < 12).sum())


def test_quality_against_time_draws_teacher_and_student(tmp_path):
    rows = [
        {"name": name, "seconds_per_sample": 0.001 * nfe, "distance": 5 + 20 / nfe, "nfe": nfe}
        for name, counts in (("teacher", (15, 63)), ("student", (1, 2)))
        for nfe in counts
    ]
    path = quality_time_plot(rows, tmp_path / "quality.png")
    assert drawn(path, "#3366aa") > 300 and drawn(path, "#dd7722") > 300
    only_teacher = quality_time_plot(rows[:2], tmp_path / "teacher.png")
    assert drawn(only_teacher, "#dd7722") == 0


def test_curves_go_through_their_points_without_gaps():
    signals = torch.tensor([[0.0, 1.0, -1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    images = curve_images(signals, height=9)
    assert images.shape == (2, 1, 9, 4) and images.dtype == torch.uint8
    black = images[:, 0] == 0
    assert [black[0, row, i].item() for i, row in enumerate((4, 0, 8, 4))] == [True] * 4
    assert black[0, :, 2].all() and black.any(1).all()
    assert black[1, 0].all() and black[1].sum() == 4
