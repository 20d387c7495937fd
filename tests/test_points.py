import numpy as np
import pytest
from scipy import ndimage

from samrobust.degradations.points import BorderPoints, CentrePoint, RandomPoints
from samrobust.errors import DatasetError
from samrobust.seeding import keyed_generator
from samrobust.types import Degradation, Mask, Prompt
from tests.conftest import blobs, rectangle

MASK = blobs(np.random.default_rng(5), (83, 131))


def _draw(degradation: Degradation, mask: Mask = MASK, trial: int = 0) -> Prompt:
    return degradation(mask, keyed_generator("test", trial))


def _on(mask: Mask, prompt: Prompt) -> list[bool]:
    x, y = prompt.points.astype(int).T
    return [bool(value) for value in mask[y, x]]


@pytest.mark.parametrize("build", [RandomPoints, BorderPoints])
def test_points_are_different_pixels_of_the_mask_and_nested(
    build: type[RandomPoints] | type[BorderPoints],
) -> None:
    longest = _draw(build(10))
    assert all(_on(MASK, longest))
    assert longest.labels.tolist() == [1] * 10
    assert len({tuple(point) for point in longest.points.tolist()}) == 10
    for count in range(1, 10):
        assert _draw(build(count)).points.tolist() == longest.points[:count].tolist()


def test_background_points_lie_in_the_ring_and_leave_the_foreground_alone() -> None:
    mask = rectangle((83, 131), (40, 20, 79, 59))  # area 1600: a ring of 4 pixels
    distance = ndimage.distance_transform_edt(~mask)
    drawn = [_draw(RandomPoints(2, background=3), mask, trial) for trial in range(50)]
    assert all(prompt.labels.tolist() == [1, 1, 0, 0, 0] for prompt in drawn)
    behind = np.concatenate([prompt.points[2:] for prompt in drawn]).astype(int)
    depths = distance[behind[:, 1], behind[:, 0]]
    assert depths.min() > 0
    assert 3 < depths.max() <= 4
    assert _draw(RandomPoints(2), mask).points.tolist() == drawn[0].points[:2].tolist()
    more = _draw(RandomPoints(7, background=3), mask)
    assert more.points[7:].tolist() == drawn[0].points[2:].tolist()


def test_random_points_are_uniform_over_the_mask() -> None:
    mask = rectangle((30, 50), (0, 0, 39, 9))
    drawn = [_draw(RandomPoints(1), mask, trial).points[0] for trial in range(2000)]
    cells = (np.array(drawn, int) // [10, 5]).tolist()
    counts = np.array([[cells.count([x, y]) for y in range(2)] for x in range(4)])
    assert counts == pytest.approx(np.full((4, 2), 250), abs=60)


def test_border_points_are_in_the_band_and_fill_it() -> None:
    mask = rectangle((200, 300), (50, 40, 249, 139))  # area 20000: a band of 0.05 * 141 = 7.07
    depth = ndimage.distance_transform_edt(mask)
    drawn = np.concatenate([_draw(BorderPoints(5), mask, t).points for t in range(200)]).astype(int)
    depths = depth[drawn[:, 1], drawn[:, 0]]
    assert depths.min() == 1
    assert 6 < depths.max() <= 7.07
    narrow = np.concatenate(
        [_draw(BorderPoints(5, band=0.001), mask, trial).points for trial in range(40)]
    ).astype(int)
    assert set(depth[narrow[:, 1], narrow[:, 0]]) == {1, 2}


def test_the_centre_point_is_the_deepest_with_the_image_border_as_outside() -> None:
    assert _draw(CentrePoint(), rectangle((50, 70), (0, 0, 20, 10))).points.tolist() == [[5, 5]]
    ring = rectangle((50, 70), (0, 0, 40, 40))
    ring[5:36, 5:36] = False
    assert _on(ring, _draw(CentrePoint(), ring)) == [True]
    assert not CentrePoint().is_random
    assert CentrePoint(background=1).is_random
    assert _draw(CentrePoint(background=2)).labels.tolist() == [1, 0, 0]


def test_one_pixel_gives_every_count_of_points() -> None:
    mask = rectangle((9, 5), (4, 8, 4, 8))
    for degradation in (RandomPoints(5), BorderPoints(5)):
        assert _draw(degradation, mask).points.tolist() == [[4, 8]] * 5
    around = _draw(CentrePoint(background=5), mask)
    assert {tuple(point) for point in around.points[1:].tolist()} == {(3, 8), (4, 7)}


def test_an_object_that_fills_the_image_has_no_background_points() -> None:
    with pytest.raises(DatasetError, match="fills the image"):
        _draw(RandomPoints(1, background=1), np.ones((4, 6), np.bool_))


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="count must be a whole number of at least 1 and at most"):
        RandomPoints(0)
    with pytest.raises(ValueError, match="background must be a whole number of at least 0"):
        BorderPoints(1, background=-1)
    with pytest.raises(ValueError, match="band must be a finite number above 0"):
        BorderPoints(1, band=0)
