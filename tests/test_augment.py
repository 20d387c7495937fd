import numpy as np
import pytest

from samrobust.training.augment import paste_object, random_colours, random_window, shrink_mask
from samrobust.training.recipe import Augmentation
from samrobust.types import Floats, Image, Mask
from tests.conftest import blobs, rectangle

SIZES_HW = [(1, 1), (1, 37), (37, 1), (2, 3), (41, 67), (90, 33), (57, 57)]


@pytest.mark.parametrize("size_hw", SIZES_HW)
def test_windows_lie_inside_the_image_and_show_a_pixel_at_least(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for least in (0.0, 0.01, 0.4, 1.0):
        for _ in range(200):
            for extent, part in zip(size_hw, random_window(rng, size_hw, least), strict=True):
                assert 0 <= part.start < part.stop <= extent
                assert part.step is None


def test_windows_are_everywhere_and_of_every_size() -> None:
    rng = np.random.default_rng(0)
    windows = [random_window(rng, (41, 67), 0.4) for _ in range(2000)]
    seen = np.zeros((41, 67), int)
    for window in windows:
        seen[window] += 1
    assert seen.min() > 0.02 * len(windows)
    sides = np.array([[part.stop - part.start for part in window] for window in windows])
    assert (sides.max(axis=0) == (41, 67)).all()
    assert sides.min() < 0.4 * 41
    assert np.median(sides[:, 0] / 41) == pytest.approx(0.7, abs=0.05)


def _parts(size: int, n: int) -> Floats:
    """Return (n, size): what share of each of n equal parts of an axis each pixel is."""
    edges = np.linspace(0, size, n + 1)
    pixels = np.arange(size)
    last, first = np.minimum.outer(edges[1:], pixels + 1), np.maximum.outer(edges[:-1], pixels)
    shares: Floats = np.clip(last - first, 0, None) * n / size
    return shares


@pytest.mark.parametrize(
    ("size_hw", "input_hw"),
    [((128, 96), (64, 48)), ((97, 131), (47, 64)), ((131, 97), (64, 47)), ((300, 65), (64, 14))],
)
def test_shrunk_masks_are_the_share_of_each_place_that_is_foreground(
    size_hw: tuple[int, int], input_hw: tuple[int, int]
) -> None:
    mask = blobs(np.random.default_rng(0), size_hw)
    found = shrink_mask(mask, input_hw, 32, stride=2)
    assert found.shape == (32, 32)
    assert found.dtype == np.float32
    rows, columns = map(_parts, size_hw, input_hw)
    square = np.zeros((64, 64))
    square[: input_hw[0], : input_hw[1]] = rows @ mask @ columns.T
    shares = square.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(found, shares, rtol=0, atol=1e-5)
    assert 0.1 < found.mean() < 0.7


def test_masks_of_small_images_grow() -> None:
    mask = np.zeros((5, 8), np.bool_)
    mask[1:4, 2:] = True
    found = shrink_mask(mask, (40, 64), 32, stride=2)
    rows, columns = np.nonzero(found > 0.5)
    assert found.sum() == pytest.approx(3 / 5 * 20 * 6 / 8 * 32, rel=0.1)
    assert (rows.min(), rows.max()) == pytest.approx((4, 15), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((8, 31), abs=1)


def test_whole_and_one_pixel_masks_keep_their_place() -> None:
    assert (shrink_mask(np.ones((31, 62), np.bool_), (32, 64), 32, stride=2)[:16] == 1).all()
    assert not shrink_mask(np.ones((31, 62), np.bool_), (32, 64), 32, stride=2)[16:].any()
    assert (shrink_mask(np.ones((1, 1), np.bool_), (64, 64), 32, stride=2) == 1).all()
    thin = shrink_mask(np.eye(1, 640, 5, dtype=np.bool_), (1, 64), 32, stride=2)
    assert thin.sum() == pytest.approx(0.1 * 0.25)  # a tenth of a position's pixel, of its four


@pytest.mark.parametrize("size_hw", SIZES_HW)
@pytest.mark.parametrize("how", [Augmentation(), Augmentation(colour=1.0), Augmentation(grey=1.0)])
def test_colours_keep_shape_and_kind(size_hw: tuple[int, int], how: Augmentation) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    before = image.copy()
    found = random_colours(rng, image[:, ::-1], how)
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(image, before)


def test_colours_stay_without_a_swing_and_change_with_one() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (41, 67, 3), dtype=np.uint8)
    still = random_colours(rng, image, Augmentation(colour=0.0, grey=0.0))
    np.testing.assert_array_equal(still, image)
    others = [random_colours(rng, image, Augmentation(colour=0.3, grey=0.0)) for _ in range(20)]
    means = np.array([other.mean(axis=(0, 1)) for other in others])
    assert means.std(axis=0).min() > 5
    assert np.ptp(means, axis=1).max() > 5


def test_grey_is_the_mean_of_the_channels_under_coloured_light() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (41, 67, 3), dtype=np.uint8)
    found = random_colours(rng, image, Augmentation(colour=0.0, grey=1.0))
    grey = image.mean(axis=2, keepdims=True).astype(np.uint8)
    np.testing.assert_array_equal(found, np.broadcast_to(grey, image.shape))
    shares = [
        np.ptp(random_colours(rng, image, Augmentation(colour=0.0, grey=0.25)), axis=2).max() == 0
        for _ in range(200)
    ]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.1)


def pasted(
    seed: int, size_hw: tuple[int, int] = (61, 97), source_hw: tuple[int, int] = (40, 23)
) -> tuple[Image, list[Mask], list[Mask]]:
    """Return a black image with a white object in front, its masks, and those from before."""
    masks = [rectangle(size_hw, (0, 0, 40, 60)), rectangle(size_hw, (41, 0, 96, 60))]
    mask = rectangle(source_hw, (2, 3, 20, 38))
    source = np.where(mask[..., None], np.uint8(255), np.uint8(90)).repeat(3, axis=2)
    image = np.zeros((*size_hw, 3), np.uint8)
    rng = np.random.default_rng(seed)
    found, after = paste_object(rng, image, masks, source, mask)
    assert not image.any()  # what was given stays
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    return found, after, masks


def test_a_pasted_object_is_in_front_and_hides_what_is_behind() -> None:
    shares = []
    for seed in range(200):
        image, (own, *others), before = pasted(seed)
        bright = image.max(axis=2) > 127
        assert (bright != own).mean() < 0.02  # the seam is smooth
        assert own.any()
        for mask, whole in zip(others, before, strict=True):
            np.testing.assert_array_equal(mask, whole & ~own)
        shares.append(own.mean())
    assert min(shares) < 0.01
    assert max(shares) > 0.2


def test_pasted_objects_lie_anywhere_and_reach_out_of_the_image() -> None:
    owns = [pasted(seed)[1][0] for seed in range(400)]
    assert np.any(owns, axis=0).all()  # every pixel is reached
    edges = [own[0].any() or own[-1].any() or own[:, 0].any() or own[:, -1].any() for own in owns]
    assert 0.1 < np.mean(edges) < 0.9


def test_a_single_pixel_can_be_pasted_into_a_single_row() -> None:
    for seed in range(20):
        image = np.zeros((1, 50, 3), np.uint8)
        mask = rectangle((9, 9), (8, 8, 8, 8))
        source = np.full((9, 9, 3), 200, np.uint8)
        found, masks = paste_object(np.random.default_rng(seed), image, [], source, mask)
        assert len(masks) == 1
        np.testing.assert_array_equal(found[..., 0] == 200, masks[0])
