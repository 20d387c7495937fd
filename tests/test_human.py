"""Boxes as people draw them, against the distribution and against torchvision's loss."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.ops import complete_box_iou_loss

from samrobust.degradations.boxes import BoxNoise, ExactBox
from samrobust.degradations.human import (
    MOST,
    SCALE,
    SHAPE,
    HumanBox,
    box_loss,
    ciou_loss,
    human_percentile,
    median_percentile,
)
from samrobust.degradations.points import RandomPoints
from samrobust.geometry import mask_to_box
from samrobust.protocol import load_protocol
from samrobust.seeding import keyed_generator
from samrobust.types import Floats, Mask
from tests.conftest import rectangle

FAR = rectangle((900, 1300), (500, 400, 699, 459))  # 200 x 60, far from the border
PEOPLE = stats.gamma(SHAPE, scale=SCALE)
CUT = float(PEOPLE.ppf(MOST / 100))


def drawn(degradation: HumanBox, mask: Mask, trials: int) -> Floats:
    boxes = [degradation(mask, keyed_generator("human", trial)).box for trial in range(trials)]
    return np.array(boxes, np.float64)


def losses_of(boxes: Iterable[Floats], mask: Mask = FAR) -> Floats:
    return np.array([box_loss(box, mask_to_box(mask)) for box in boxes])


def test_the_loss_is_torchvisions() -> None:
    rng = np.random.default_rng(0)
    low, sides = rng.uniform(0, 80, (500, 2)), rng.uniform(1, 60, (500, 2))
    boxes = np.concatenate([low, low + sides], axis=1)
    others = boxes[::-1].copy()
    wanted = complete_box_iou_loss(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
    ours = [ciou_loss(*pair) for pair in zip(boxes.tolist(), others.tolist(), strict=True)]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
    assert ciou_loss(boxes[0].tolist(), boxes[0].tolist()) == 0


def test_percentiles_are_scipys() -> None:
    for percentile, loss in ((25, 0.098), (50, 0.178), (75, 0.294), (90, 0.432), (95, 0.532)):
        assert human_percentile(PEOPLE.ppf(percentile / 100)) == pytest.approx(percentile)
        assert PEOPLE.ppf(percentile / 100) == pytest.approx(loss, abs=6e-4)  # peers.md 5.2


_BORDER = {
    "far": FAR,
    "corner": rectangle((90, 131), (0, 0, 40, 22)),
    "whole image": rectangle((61, 83), (0, 0, 82, 60)),
    "two pixels": rectangle((31, 47), (20, 14, 21, 14)),
    "one pixel": rectangle((31, 47), (46, 30, 46, 30)),
    "line": rectangle((31, 211), (40, 30, 139, 30)),
}


@pytest.mark.parametrize("mask", _BORDER.values(), ids=_BORDER.keys())
@pytest.mark.parametrize("percentile", [1, 50, 99])
def test_a_percentile_is_met_also_at_the_border(mask: Mask, percentile: float) -> None:
    boxes = drawn(HumanBox(percentile), mask, 100)
    wanted = PEOPLE.ppf(percentile / 100)
    np.testing.assert_allclose(losses_of(boxes, mask), wanted, rtol=0, atol=1e-3)
    assert (boxes >= 0).all()
    assert (boxes <= np.tile(mask.shape[::-1], 2) - 1).all()


def test_no_direction_is_preferred() -> None:
    moves = drawn(HumanBox(50), FAR, 800) - mask_to_box(FAR)
    units = moves / [-200, -60, 200, 60]
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    assert np.abs(units.mean(axis=0)).max() < 0.06
    assert (units**2).mean(axis=0) == pytest.approx(np.full(4, 0.25), abs=0.03)


@pytest.mark.parametrize("mask", [FAR, _BORDER["corner"]], ids=["far", "corner"])
def test_losses_are_distributed_as_peoples(mask: Mask) -> None:
    losses = losses_of(drawn(HumanBox(), mask, 1500), mask)
    assert losses.max() <= CUT + 1e-3
    assert stats.kstest(losses, lambda x: PEOPLE.cdf(x) / (MOST / 100)).pvalue > 0.05
    assert stats.kstest(losses, lambda x: PEOPLE.cdf(x / 1.2) / (MOST / 100)).pvalue < 0.01


def test_another_distribution_can_be_given() -> None:
    losses = losses_of(drawn(HumanBox(None, 3.0, 0.05), FAR, 500))
    theirs = stats.gamma(3.0, scale=0.05)
    assert stats.kstest(losses, lambda x: theirs.cdf(x) / (MOST / 100)).pvalue > 0.05
    for shape, scale in ((0, 0.1), (2, -1), (2, 3), (float("nan"), 0.1)):
        with pytest.raises(ValueError, match="shape and scale must be above 0"):
            HumanBox(50, shape, scale)


@pytest.mark.parametrize("mask", _BORDER.values(), ids=_BORDER.keys())
def test_the_levels_of_a_trial_are_nested(mask: Mask) -> None:
    tight = mask_to_box(mask)
    for trial in range(20):
        moves = [
            np.abs(HumanBox(level)(mask, keyed_generator("ray", trial)).box - tight)  # type: ignore[operator]
            for level in (25, 50, 95)
        ]
        assert (moves[0] <= moves[1] + 1e-4).all()
        assert (moves[1] <= moves[2] + 1e-4).all()


def test_an_image_of_one_pixel_has_one_box() -> None:
    box = HumanBox(95)(rectangle((1, 1), (0, 0, 0, 0)), keyed_generator("pixel")).box
    assert box is not None
    assert box.tolist() == [0, 0, 0, 0]


def test_a_condition_is_as_human_as_its_median_box() -> None:
    noise = BoxNoise(0.4, 0.4)
    found = [median_percentile(condition.degradation) for condition in LADDER]
    wanted = [0, 34, 64, 80, 89, 93, 96]  # docs/sources/robustness.md, C.3
    np.testing.assert_allclose(np.array(found, np.float64), wanted, rtol=0, atol=1)
    mask = rectangle((300, 300), (100, 100, 199, 199))
    boxes = [noise(mask, keyed_generator("median", number)).box for number in range(2000)]
    median = human_percentile(float(np.median([box_loss(b, mask_to_box(mask)) for b in boxes])))  # type: ignore[arg-type]
    assert median_percentile(noise) == pytest.approx(median, abs=1.5)
    assert median_percentile(HumanBox(75)) == pytest.approx(75)
    assert median_percentile(HumanBox()) == pytest.approx(49.5)
    assert median_percentile(ExactBox()) == 0
    assert median_percentile(RandomPoints(1)) is None


LADDER = load_protocol("noisy-box").conditions


@pytest.mark.parametrize("percentile", [0, -1, 99.5, float("nan")])
def test_percentiles_that_nobody_draws_are_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile must be above 0 and at most 99, got"):
        HumanBox(percentile)
