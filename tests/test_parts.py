import numpy as np
import pytest

from samrobust.degradations.parts import PartBox, PartPoints
from samrobust.geometry import mask_to_box
from samrobust.seeding import keyed_generator
from samrobust.types import Mask
from tests.conftest import blobs, rectangle

MASK = blobs(np.random.default_rng(5), (83, 131))
TRIALS = range(200)


def boxes(side: float, mask: Mask = MASK) -> np.ndarray:
    drawn = [PartBox(side)(mask, keyed_generator("test", trial)).box for trial in TRIALS]
    return np.array(drawn)


@pytest.mark.parametrize("side", [0.01, 0.3, 0.7, 1.0])
def test_a_part_is_no_larger_than_its_window_and_fits_the_mask(side: float) -> None:
    x0, y0, x1, y1 = mask_to_box(MASK)
    found = boxes(side)
    assert (found[:, :2] >= [x0, y0]).all()
    assert (found[:, 2:] <= [x1, y1]).all()
    sides = found[:, 2:] - found[:, :2] + 1
    assert (sides >= 1).all()
    assert (sides <= np.maximum(1, np.round(side * np.array([x1 - x0 + 1, y1 - y0 + 1])))).all()
    for box in found.astype(int):
        inside = MASK[box[1] : box[3] + 1, box[0] : box[2] + 1]
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_the_whole_side_is_the_exact_box() -> None:
    np.testing.assert_array_equal(boxes(1.0), np.tile(mask_to_box(MASK), (len(TRIALS), 1)))
    assert not PartBox(1.0).is_random
    assert PartBox(0.9).is_random


def test_parts_of_a_rectangle_are_everywhere_in_it() -> None:
    mask = rectangle((60, 90), (10, 20, 69, 49))
    found = boxes(0.5, mask)
    np.testing.assert_array_equal(found[:, 2:] - found[:, :2] + 1, np.tile([30, 15], (200, 1)))
    assert found[:, 0].min() < 13
    assert found[:, 2].max() > 66
    assert len({tuple(box) for box in found.tolist()}) > 150


def test_part_points_lie_on_the_object_in_one_window_and_nest() -> None:
    width, height = mask_to_box(MASK)[2:] - mask_to_box(MASK)[:2] + 1
    for trial in TRIALS:
        prompt = PartPoints(6, 0.4)(MASK, keyed_generator("test", trial))
        x, y = prompt.points.astype(int).T
        assert MASK[y, x].all()
        assert np.ptp(x) < 0.4 * width + 1
        assert np.ptp(y) < 0.4 * height + 1
        assert prompt.labels.tolist() == [1] * 6
        fewer = PartPoints(2, 0.4)(MASK, keyed_generator("test", trial))
        np.testing.assert_array_equal(fewer.points, prompt.points[:2])


@pytest.mark.parametrize("at", [(0, 0), (30, 17)])
def test_one_pixel_has_itself_as_its_part(at: tuple[int, int]) -> None:
    mask = rectangle((18, 31), (*at, *at))
    assert PartBox(0.2)(mask, keyed_generator("a")).box == pytest.approx([*at, *at])
    points = PartPoints(3, 0.2)(mask, keyed_generator("a")).points
    assert points.tolist() == [list(at)] * 3


@pytest.mark.parametrize("side", [0.0, -0.5, 1.01, float("nan")])
def test_other_sides_are_refused(side: float) -> None:
    for build in (lambda: PartBox(side), lambda: PartPoints(1, side)):
        with pytest.raises(ValueError, match=r"side must be in \(0, 1\], got"):
            build()
    with pytest.raises(ValueError, match="count must be a whole number of at least 1 and at most"):
        PartPoints(0, 0.5)
