import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samrobust.degradations.boxes import BoxNoise, BoxScale, BoxShift, ExactBox
from samrobust.seeding import keyed_generator
from samrobust.types import Degradation
from tests.conftest import rectangle

SIZE_HW = (200, 300)
MASK = rectangle(SIZE_HW, (100, 60, 180, 100))  # sides 80 and 40, far from the border
EXACT = [100, 60, 180, 100]


def _box(degradation: Degradation, trial: int = 0) -> list[float]:
    box = degradation(MASK, keyed_generator("test", trial)).box
    assert box is not None
    return [float(value) for value in box]


def test_the_exact_box_is_first_and_last_row_and_column() -> None:
    assert _box(ExactBox()) == EXACT


def test_no_noise_is_the_exact_box_also_of_one_pixel() -> None:
    for degradation in (BoxNoise(0, 0), BoxShift(0), BoxScale(1)):
        assert _box(degradation) == EXACT
        pixel = rectangle((5, 9), (8, 0, 8, 0))
        box = degradation(pixel, keyed_generator("pixel")).box
        assert box is not None
        assert box.tolist() == [8, 0, 8, 0]
    assert not BoxNoise(0, 0).is_random
    assert not BoxShift(0).is_random
    assert BoxNoise(0, 0.1).is_random


def test_noise_is_uniform_within_its_bounds_and_independent_per_axis() -> None:
    boxes = np.array([_box(BoxNoise(0.4, 0.3), trial) for trial in range(3000)])
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    noise = np.concatenate(
        [(centres - [140, 80]) / (0.4 * np.array([40, 20])), (sides / [80, 40] - 1) / 0.3], axis=1
    )
    assert np.abs(noise).max() <= 1 + 1e-4
    assert noise.mean(axis=0) == pytest.approx(np.zeros(4), abs=0.05)
    assert noise.var(axis=0) == pytest.approx(np.full(4, 1 / 3), abs=0.02)
    assert np.abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.06


def test_a_ladder_of_noise_is_paired() -> None:
    low, high = np.array(_box(BoxNoise(0.1, 0.1))), np.array(_box(BoxNoise(0.4, 0.4)))
    assert high - EXACT == pytest.approx(4 * (low - EXACT), rel=1e-4)


def test_shift_moves_by_exactly_the_amount_in_any_direction() -> None:
    steps = []
    for trial in range(500):
        box = np.array(_box(BoxShift(0.5), trial))
        assert box[2:] - box[:2] == pytest.approx([80, 40], abs=1e-4)
        steps.append((box[:2] - EXACT[:2]) / [80, 40])
    assert np.hypot(*np.transpose(steps)) == pytest.approx(np.full(500, 0.5), abs=1e-5)
    assert np.mean(steps, axis=0) == pytest.approx([0, 0], abs=0.06)


def test_scale_is_about_the_centre() -> None:
    assert _box(BoxScale(0.5)) == [120, 70, 160, 90]
    assert _box(BoxScale(2)) == [60, 40, 220, 120]


@settings(deadline=None, max_examples=300)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    corners=st.tuples(*[st.integers(0, 11)] * 4),
    level=st.floats(0, 5),
    trial=st.integers(0, 10**6),
)
def test_boxes_are_inside_and_never_inverted_or_thinner_than_a_pixel(
    height: int, width: int, corners: tuple[int, ...], level: float, trial: int
) -> None:
    x = sorted(value % width for value in corners[:2])
    y = sorted(value % height for value in corners[2:])
    mask = rectangle((height, width), (x[0], y[0], x[1], y[1]))
    degradations: list[Degradation] = [
        BoxNoise(level, level),
        BoxShift(level),
        BoxScale(level + 0.01),
    ]
    for degradation in degradations:
        box = degradation(mask, keyed_generator(trial)).box
        assert box is not None
        assert (box >= 0).all()
        assert (box <= [width - 1, height - 1] * 2).all()
        assert box[2] - box[0] >= min(1, x[1] - x[0]) - 1e-5
        assert box[3] - box[1] >= min(1, y[1] - y[0]) - 1e-5


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_bad_levels_are_refused(bad: float) -> None:
    for build in (lambda: BoxNoise(bad, 0), lambda: BoxNoise(0, bad), lambda: BoxShift(bad)):
        with pytest.raises(ValueError, match="must be a finite number of at least 0"):
            build()
    with pytest.raises(ValueError, match="factor must be a finite number above 0"):
        BoxScale(bad)
    with pytest.raises(ValueError, match="factor"):
        BoxScale(0)
