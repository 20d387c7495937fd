import numpy as np
import pytest

from samrobust.datasets.coco import decode_run_lengths, encode_mask
from tests.conftest import blobs


@pytest.mark.parametrize("size_hw", [(1, 1), (41, 67), (90, 33), (1, 57)])
def test_masks_come_back_as_they_were(size_hw: tuple[int, int]) -> None:
    for mask in (
        blobs(np.random.default_rng(0), size_hw),
        np.zeros(size_hw, np.bool_),
        np.ones(size_hw, np.bool_),
    ):
        np.testing.assert_array_equal(decode_run_lengths(encode_mask(mask), size_hw), mask)
