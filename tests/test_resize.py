from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pagoda_bench.data.resize import box_down, center_crop_adm, center_crop_box, upsample
from pagoda_bench.errors import UserError


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@st.composite
def box_cases(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    resolution, bits = draw(st.sampled_from([1, 2, 3])), draw(st.integers(0, 3))
    size = resolution << bits
    values = draw(st.sampled_from([st.integers(0, 255), st.integers(0, 1), st.integers(254, 255)]))
    return draw(arrays(np.uint8, (draw(st.integers(1, 2)), size, size, 3), elements=values)), resolution


@settings(max_examples=80, deadline=None)
@given(box_cases())
def test_box_down_is_the_mean_rounded_half_to_even(case: tuple[np.ndarray, int]) -> None:
    images, resolution = case
    k = images.shape[1] // resolution
    out = box_down(images, resolution)
    assert out.dtype == np.uint8
    for n, y, x, c in np.ndindex(out.shape):
        box = images[n, y * k : (y + 1) * k, x * k : (x + 1) * k, c]
        assert out[n, y, x, c] == round(Fraction(sum(int(v) for v in box.flat), k * k))  # Fraction rounds half to even
    assert np.abs(out.mean((1, 2)) - images.mean((1, 2))).max() <= 0.5


@pytest.mark.parametrize("factor", [16, 32, 256])
def test_box_down_does_not_overflow(factor: int) -> None:
    assert (box_down(np.full((1, factor, factor, 3), 255, np.uint8), 1) == 255).all()
    ramp = random_images(1, 2 * factor, 2 * factor, 3)
    naive = np.rint(ramp.reshape(1, 2, factor, 2, factor, 3).mean((2, 4)))
    np.testing.assert_array_equal(box_down(ramp, 2), naive)


def test_box_down_at_the_same_resolution_changes_nothing() -> None:
    images = random_images(3, 8, 8, 3)
    np.testing.assert_array_equal(box_down(images, 8), images)


@pytest.mark.parametrize("resolution", [0, -4, 4, 5, 8, 48])
def test_box_down_refuses_what_is_not_a_power_of_two(resolution: int) -> None:
    with pytest.raises(UserError, match="power of two"):
        box_down(random_images(1, 24, 24, 3), resolution)


def test_nearest_repeats_pixels_and_inverts_box_down() -> None:
    images = random_images(4, 8, 8, 3)
    large = upsample(images, 32, "nearest")
    assert (large[:, 4:8, 8:12] == images[:, 1:2, 2:3]).all()
    np.testing.assert_array_equal(box_down(large, 8), images)


@pytest.mark.parametrize(("size", "resolution"), [(8, 16), (8, 64), (7, 24), (3, 32), (1, 4)])
def test_bicubic_is_pil_on_float_channels(size: int, resolution: int) -> None:
    images = random_images(3, size, size, 3, seed=size)
    out = upsample(images, resolution, "bicubic")
    for image, result in zip(images, out, strict=True):
        for c in range(3):
            plane = Image.fromarray(image[..., c].astype(np.float32))
            exact = np.asarray(plane.resize((resolution, resolution), Image.Resampling.BICUBIC)).clip(0, 255)
            assert np.abs(result[..., c] - exact).max() <= 0.5 + 1e-3


def test_bicubic_keeps_constants_and_is_independent_of_the_batch() -> None:
    assert (upsample(np.full((1, 4, 4, 3), 77, np.uint8), 32, "bicubic") == 77).all()
    images = random_images(300, 4, 4, 3)
    many = upsample(images, 8, "bicubic")
    np.testing.assert_array_equal(many[299:], upsample(images[299:], 8, "bicubic"))


def test_upsample_refuses_what_it_cannot_do() -> None:
    images = random_images(1, 8, 8, 3)
    with pytest.raises(UserError, match="box_down"):
        upsample(images, 4, "nearest")
    with pytest.raises(UserError, match="multiple of 8"):
        upsample(images, 20, "nearest")
    with pytest.raises(UserError, match=r"lanczos.*known: bicubic, nearest"):
        upsample(images, 16, "lanczos")  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 40), st.integers(5, 40), st.integers(1, 5))
def test_center_crop_box_is_pil_box_of_the_centre_square(height: int, width: int, resolution: int) -> None:
    image = random_images(height, width, 3, seed=height * 41 + width)
    out = center_crop_box(image, resolution)
    assert out.shape == (resolution, resolution, 3)
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    for c in range(3):
        plane = Image.fromarray(image[..., c].astype(np.float32)).crop((left, top, left + side, top + side))
        exact = np.asarray(plane.resize((resolution, resolution), Image.Resampling.BOX))
        assert np.abs(out[..., c] - exact).max() <= 0.5 + 1e-3


def test_center_crop_box_agrees_with_box_down_and_upsample() -> None:
    image = random_images(32, 32, 3)
    np.testing.assert_array_equal(center_crop_box(image, 32), image)
    np.testing.assert_array_equal(center_crop_box(image, 8), box_down(image[None], 8)[0])
    np.testing.assert_array_equal(center_crop_box(image, 48), upsample(image[None], 48, "bicubic")[0])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 75), (75, 100), (257, 130), (20, 33), (33, 200)])
def test_center_crop_adm_takes_the_right_route(height: int, width: int) -> None:
    """The number of halvings, the final size and the offsets, derived here from the definition by logarithms."""
    image = random_images(height, width, 3, seed=height)
    halvings = max(0, math.floor(math.log2(min(height, width) / 32)))
    picture = Image.fromarray(image)
    for _ in range(halvings):
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    short, long = sorted(picture.size)
    long = round(long * (32 / short))
    picture = picture.resize((32, long) if picture.width < picture.height else (long, 32), Image.Resampling.BICUBIC)
    top, left = (picture.height - 32) // 2, (picture.width - 32) // 2
    expected = np.asarray(picture.crop((left, top, left + 32, top + 32)))
    np.testing.assert_array_equal(center_crop_adm(image, 32), expected)
