"""Corruptions against their effect on an image, written out here."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image

from kd.measure.corruptions import CORRUPTIONS, corrupt

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
INDEX = np.arange(6)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
@pytest.mark.parametrize("pixels", [COLOUR, GRAY], ids=["colour", "gray 8x8"])
def test_an_image_is_corrupted_alike_in_any_batch(name: str, pixels: np.ndarray) -> None:
    whole = corrupt(pixels, INDEX, name, 5)
    assert whole.shape == pixels.shape
    assert whole.dtype == np.uint8
    order = np.array([4, 1])
    assert np.array_equal(corrupt(pixels[order], order, name, 5), whole[order])


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_severities_grow(name: str) -> None:
    smooth = (
        np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)[None, None] * 2 + COLOUR // 8
    )
    away = [
        np.abs(corrupt(smooth, INDEX, name, s).astype(float) - smooth).mean() for s in range(1, 6)
    ]
    assert away == sorted(away)
    assert away[0] > 0


def test_noise_has_its_deviation_and_its_seed() -> None:
    middle = np.full((40, 1, 32, 32), 128, np.uint8)
    for severity, deviation in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        found = (corrupt(middle, np.arange(40), "noise", severity) / 255.0) - 128 / 255
        assert found.std() == pytest.approx(deviation, rel=0.02)
        assert abs(found.mean()) < 0.002
    first, other = (corrupt(middle, np.arange(40), "noise", 1, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(("side", "sigma"), [(32, 1.0), (8, 1.0), (64, 2.0)])
def test_blur_is_a_gaussian(side: int, sigma: float) -> None:
    point = np.zeros((1, 1, side, side), np.uint8)
    point[0, 0, side // 2, side // 2] = 255
    at = np.arange(side) - side // 2
    kernel = np.exp(-(at**2) / (2 * sigma**2))
    kernel[np.abs(at) > 4 * sigma] = 0
    expected = np.outer(kernel, kernel) / kernel.sum() ** 2 * 255
    found = corrupt(point, np.array([0]), "blur", 5)[0, 0]
    assert np.abs(found - expected)[2:-2, 2:-2].max() <= 0.51


def test_brightness_raises_the_value_and_keeps_the_hue() -> None:
    dark = COLOUR // 2
    dark[0, :, 0, 0] = 0  # black has no hue
    found = corrupt(dark, INDEX, "brightness", 3)
    for image, y, x in ((0, 0, 0), (0, 5, 7), (2, 30, 1), (5, 16, 16)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(dark[image, :, y, x] / 255))
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.15))) * 255
        assert found[image, :, y, x] == pytest.approx(expected, abs=0.51)
    assert corrupt(np.full((1, 1, 2, 2), 200, np.uint8), INDEX[:1], "brightness", 5).tolist() == [
        [[[255, 255]] * 2]
    ]
    assert corrupt(np.full((1, 1, 2, 2), 100, np.uint8), INDEX[:1], "brightness", 1)[
        0, 0, 0, 0
    ] == round(100 + 12.75)


@pytest.mark.parametrize("pixels", [COLOUR, GRAY], ids=["colour", "gray 8x8"])
def test_jpeg_is_pillows(pixels: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels[1].transpose(1, 2, 0).squeeze()).save(file, "JPEG", quality=58)
    expected = np.asarray(Image.open(file)).reshape(*pixels.shape[2:], -1).transpose(2, 0, 1)
    assert np.array_equal(corrupt(pixels, INDEX, "jpeg", 3)[1], expected)
