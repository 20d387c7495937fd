import numpy as np
import pytest

from samrobust.training.augment import draw_ellipses

SIDE = 64


def test_there_are_as_many_ellipses_as_asked_for_and_none_is_a_speck() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 7, 40):
        sample = draw_ellipses(rng, count, SIDE)
        assert len(sample.instances) == count
        assert sample.image.shape == (SIDE, SIDE, 3)
        assert not sample.image.any()
        assert all(instance.mask.sum() > 3 for instance in sample.instances)


def test_whole_ellipses_fill_their_boxes_by_a_quarter_of_pi() -> None:
    sample = draw_ellipses(np.random.default_rng(0), 300, SIDE)
    areas, cut, shares = [], 0, []
    for instance in sample.instances:
        y, x = np.nonzero(instance.mask)
        areas.append(len(x))
        if min(x.min(), y.min()) == 0 or max(x.max(), y.max()) == SIDE - 1:
            cut += 1
        elif len(x) > 100:
            shares.append(len(x) / (np.ptp(x) + 1) / (np.ptp(y) + 1))
    assert np.mean(shares) == pytest.approx(np.pi / 4, abs=0.05)
    assert 60 < cut < 240
    assert min(areas) < 20
    assert max(areas) > 0.5 * SIDE**2


def test_ellipses_are_those_of_their_generator() -> None:
    drawn = [draw_ellipses(np.random.default_rng(seed), 3, SIDE) for seed in (7, 7, 8)]
    masks = [[instance.mask for instance in sample.instances] for sample in drawn]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
