import numpy as np
import pytest
import torch

from samrobust.metrics.overlap import STABILITY, stability_factor
from tests.conftest import blobs, rectangle

TARGET = torch.zeros(40, 61, dtype=torch.bool)


def test_it_is_the_mean_iou_with_the_union() -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([blobs(rng, (40, 61)) for _ in range(5)])
    union = masks.any(axis=0)
    expected = np.mean([np.count_nonzero(mask) / np.count_nonzero(union) for mask in masks])
    value = stability_factor(torch.from_numpy(masks), TARGET)
    assert value.shape == (1,)
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_equal_masks_and_empty_masks_are_stable_and_disjoint_ones_share() -> None:
    mask = torch.from_numpy(rectangle((40, 61), (3, 3, 12, 12)))
    other = torch.from_numpy(rectangle((40, 61), (30, 3, 39, 12)))
    assert stability_factor(torch.stack([mask] * 3), TARGET).item() == 1
    assert stability_factor(torch.zeros(3, 40, 61, dtype=torch.bool), TARGET).item() == 1
    assert stability_factor(torch.stack([mask, other]), TARGET).item() == 0.5
    assert STABILITY.over_trials
