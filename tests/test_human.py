"""Boxes as people draw them, against the distribution and against torchvision's loss."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.ops import complete_box_iou_loss

from samrobust.degradations.boxes import BoxNoise
from samrobust.degradations.human import (
    MOST,
    SCALE,
    SHAPE,
    HumanBox,
    ciou_loss,
    human_boxes,
    human_loss,
    human_percentile,
    percentile_of_condition,
)
from samrobust.geometry import mask_to_box
from samrobust.seeding import keyed_generator
from samrobust.types import Floats
from tests.conftest import rectangle

SIZE_HW = (900, 1300)
TIGHT = np.array([500, 400, 699, 459], np.float64)  # 200 x 60, far from the border
MASK = rectangle(SIZE_HW, (500, 400, 699, 459))
PEOPLE = stats.gamma(SHAPE, scale=SCALE)


def losses_of(boxes: Floats) -> Floats:
    ends = np.array([0, 0, 1, 1])
    return ciou_loss(boxes + ends, TIGHT + ends)


def drawn(degradation: HumanBox, trials: int) -> Floats:
    boxes = [degradation(MASK, keyed_generator("human", trial)).box for trial in range(trials)]
    return np.array(boxes, np.float64)


def test_the_loss_is_torchvisions() -> None:
    rng = np.random.default_rng(0)
    low, sides = rng.uniform(0, 80, (500, 2)), rng.uniform(1, 60, (500, 2))
    boxes = np.concatenate([low, low + sides], axis=1)
    for other in (np.array([30, 30, 70, 50.0]), boxes[::-1]):
        wanted = complete_box_iou_loss(
            torch.from_numpy(boxes), torch.from_numpy(np.broadcast_to(other, boxes.shape).copy())
        )
        np.testing.assert_allclose(ciou_loss(boxes, other), wanted.numpy(), rtol=0, atol=1e-5)
    assert ciou_loss(boxes[:1], boxes[0]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("percentile", [1, 25, 50, 75, 90, 95, 99])
def test_a_percentile_is_met_in_every_direction(percentile: float) -> None:
    boxes = drawn(HumanBox(percentile), 200)
    np.testing.assert_allclose(losses_of(boxes), PEOPLE.ppf(percentile / 100), rtol=0, atol=1e-3)
    np.testing.assert_allclose(human_percentile(boxes, TIGHT), percentile, rtol=0, atol=0.1)
    directions = (boxes - TIGHT) / np.abs(boxes - TIGHT).max(axis=1, keepdims=True)
    assert np.abs(directions.mean(axis=0)).max() < 0.2
    assert len(np.unique(np.sign(boxes - TIGHT), axis=0)) > 10


def test_losses_are_distributed_as_peoples() -> None:
    losses = losses_of(drawn(HumanBox(), 1500))
    cut = PEOPLE.ppf(MOST / 100)
    assert losses.max() <= cut + 1e-3
    assert stats.kstest(losses, lambda x: PEOPLE.cdf(x) / (MOST / 100)).pvalue > 0.05
    assert stats.kstest(losses, lambda x: PEOPLE.cdf(x / 1.2) / (MOST / 100)).pvalue < 0.01


def test_percentiles_are_scipys() -> None:
    percentiles = np.array([1, 25, 50, 95, 99.0])
    np.testing.assert_allclose(human_loss(percentiles), PEOPLE.ppf(percentiles / 100), rtol=1e-9)
    # docs/sources/peers.md 5.2
    np.testing.assert_allclose(
        human_loss(np.array([25, 50, 75, 90, 95.0])), [0.098, 0.178, 0.294, 0.432, 0.532], atol=6e-4
    )


def test_a_ladder_goes_out_along_one_ray() -> None:
    for trial in range(20):
        moves = [
            HumanBox(percentile)(MASK, keyed_generator("ray", trial)).box - TIGHT  # type: ignore[operator]
            for percentile in (25, 50, 95)
        ]
        shares = [np.linalg.norm(move) / np.linalg.norm(moves[-1]) for move in moves]
        assert shares == sorted(shares)
        for move, share in zip(moves, shares, strict=True):
            np.testing.assert_allclose(move, share * moves[-1], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("size_hw", "box"),
    [((1, 1), (0, 0, 0, 0)), ((5, 40), (0, 2, 39, 2)), ((31, 17), (16, 30, 16, 30))],
)
def test_boxes_stay_inside_small_images(
    size_hw: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    mask = rectangle(size_hw, box)
    for trial in range(50):
        found = HumanBox()(mask, keyed_generator("small", trial)).box
        assert found is not None
        assert found.dtype == np.float32
        assert (found >= 0).all()
        assert (found <= np.tile(size_hw[::-1], 2) - 1).all()


def test_many_boxes_at_once_are_those_of_one_after_the_other() -> None:
    percentiles = np.array([10.0, 50, 90])
    together = human_boxes(TIGHT, SIZE_HW, percentiles, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    alone = [human_boxes(TIGHT, SIZE_HW, percentiles[n : n + 1], rng)[0] for n in range(3)]
    np.testing.assert_array_equal(together, alone)
    assert mask_to_box(MASK).tolist() == TIGHT.tolist()


def test_a_condition_is_as_human_as_its_median_box() -> None:
    noise = {"shift": 0.4, "scale": 0.4}
    assert percentile_of_condition("box-noise", noise) == pytest.approx(89, abs=1.5)
    assert percentile_of_condition("box-noise", {"shift": 0.1, "scale": 0.1}) == pytest.approx(
        34, abs=2
    )
    boxes = [BoxNoise(0.4, 0.4)(MASK, keyed_generator("median", n)).box for n in range(2000)]
    median = np.median(human_percentile(np.array(boxes, np.float64), TIGHT))
    assert percentile_of_condition("box-noise", noise) == pytest.approx(median, abs=1.5)
    assert percentile_of_condition("human-box", {"percentile": 75}) == pytest.approx(75, abs=0.5)
    assert percentile_of_condition("exact-box", {}) == pytest.approx(0, abs=1e-6)
    assert percentile_of_condition("random-points", {"count": 1}) is None
    assert percentile_of_condition("of-a-plugin", {}) is None


@pytest.mark.parametrize("percentile", [0, -1, 99.5, float("nan")])
def test_percentiles_that_nobody_draws_are_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile must be above 0 and at most 99, got"):
        HumanBox(percentile)
