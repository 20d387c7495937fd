"""The kernels of a GPU, run by Triton's interpreter on a CPU: in a process that starts with it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from samrobust.metrics.bits import count_bits, erode_bits, pack_with_numpy
from tests.test_overlap import SIZES, masks_of

REACHES = (1, 13, 32, 63, 64, 70)


def test_kernels_do_what_numpy_does() -> None:
    pytest.importorskip("triton", reason="torch brings Triton on Linux alone")
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_kernels"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def compare(size_hw: tuple[int, int]) -> None:
    from samrobust.metrics import kernels

    masks = masks_of(size_hw, 3)
    words = pack_with_numpy(masks, max(REACHES))
    every_other = torch.from_numpy(np.repeat(masks, 2, axis=0))[::2]
    for given in (torch.from_numpy(masks), every_other, torch.from_numpy(masks).mT.contiguous().mT):
        assert np.array_equal(kernels.pack(given, words.shape[-1]).numpy(), words)
    for others in (words[:1].copy(), words[::-1].copy()):
        in_both, in_either = kernels.overlap(torch.from_numpy(words), torch.from_numpy(others))
        assert torch.equal(in_both, count_bits(words & others))
        assert torch.equal(in_either, count_bits(words | others))
    for reach in REACHES:
        eroded = kernels.erode(torch.from_numpy(words), reach).numpy()
        assert np.array_equal(eroded, erode_bits(words, reach))


if __name__ == "__main__":
    for size in SIZES:
        compare(size)
