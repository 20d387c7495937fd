import cv2
import numpy as np
import pytest
from scipy import ndimage

from samrobust.geometry import (
    border_pixels,
    box_sides,
    clip_box,
    deepest_pixel,
    flat_to_points,
    foreground_pixels,
    mask_to_box,
    perimeter,
    ring_pixels,
)
from tests.conftest import blobs, rectangle

SIZES = [(40, 61), (61, 40), (7, 90), (33, 33)]


@pytest.mark.parametrize("size_hw", SIZES)
def test_the_box_is_inclusive_as_opencv_sees_it(size_hw: tuple[int, int]) -> None:
    mask = blobs(np.random.default_rng(1), size_hw)
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    assert mask_to_box(mask).tolist() == [x, y, x + width - 1, y + height - 1]


def test_one_pixel_has_a_box_without_extent_and_sides_of_one() -> None:
    box = mask_to_box(rectangle((9, 5), (4, 8, 4, 8)))
    assert box.tolist() == [4, 8, 4, 8]
    assert box_sides(box).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-5, -5, 100, 100], [0, 0, 60, 39]),
        ([3.5, 4, 10, 11], [3.5, 4, 10, 11]),
        ([70, 10, 80, 20], [59, 10, 60, 20]),  # wholly outside: a pixel wide at the border
        ([9, 10, 5, 20], [6.5, 10, 7.5, 20]),  # inverted: a pixel wide about its centre
    ],
)
def test_clipped_boxes_stay_inside_and_keep_an_extent(
    box: list[float], expected: list[float]
) -> None:
    clipped = clip_box(np.array(box, np.float64), (40, 61), least_wh=np.ones(2))
    assert clipped.tolist() == expected


@pytest.mark.parametrize("size_hw", SIZES)
def test_bands_and_depth_agree_with_a_distance_transform_of_the_whole_image(
    size_hw: tuple[int, int],
) -> None:
    mask = blobs(np.random.default_rng(2), size_hw)
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~mask)
    for width in (1.0, 2.5, 100.0):
        border = np.flatnonzero((inside > 0) & (inside <= width))
        assert sorted(border_pixels(mask, width)) == border.tolist()
        ring = np.flatnonzero((outside > 0) & (outside <= width))
        assert sorted(ring_pixels(mask, width)) == ring.tolist()
    assert deepest_pixel(mask) == inside.argmax()
    assert foreground_pixels(mask).tolist() == np.flatnonzero(mask).tolist()


def test_results_are_kept_for_read_only_masks_alone() -> None:
    mask = rectangle((20, 30), (3, 3, 9, 9))
    assert foreground_pixels(mask) is not foreground_pixels(mask)
    mask[3, 3] = False
    assert len(foreground_pixels(mask)) == 48
    mask.setflags(write=False)
    assert foreground_pixels(mask) is foreground_pixels(mask)
    assert border_pixels(mask, 1) is border_pixels(mask, 1)
    assert len(border_pixels(mask, 1)) < len(border_pixels(mask, 2))
    equal = mask.copy()
    equal.setflags(write=False)
    assert foreground_pixels(equal) is not foreground_pixels(mask)


def test_flat_indices_become_xy() -> None:
    assert flat_to_points([0, 61, 125], 61).tolist() == [[0, 0], [0, 1], [3, 2]]


def test_a_perimeter_is_that_of_the_shape_within_a_few_percent() -> None:
    y, x = np.mgrid[:150, :210]
    disc = (x - 100) ** 2 + (y - 70) ** 2 <= 50**2
    assert perimeter(disc) == pytest.approx(2 * np.pi * 50, rel=0.02)
    hole = disc & ((x - 100) ** 2 + (y - 70) ** 2 > 20**2)
    assert perimeter(hole) == pytest.approx(2 * np.pi * 70, rel=0.02)
    assert perimeter(rectangle((150, 210), (0, 0, 59, 39))) == pytest.approx(200, rel=0.06)
    slanted = (np.abs(x + y - 170) <= 30) & (np.abs(x - y - 30) <= 40)  # sides of 30 and 40 √2
    assert perimeter(slanted) == pytest.approx(2 * np.sqrt(2) * 70, rel=0.06)
    assert perimeter(np.ones((1, 1), np.bool_)) == pytest.approx(np.pi / 2 * (1 + 2**-0.5))
