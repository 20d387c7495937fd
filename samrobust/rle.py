"""Masks as COCO's compressed run lengths: a few hundred bytes instead of a pixel each."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco

from samrobust.types import Mask

_FIRST, _LAST = ord("0"), ord("o")
"""Of the 64 characters that run lengths are written in."""
_MOST_BITS = 35
"""Of a run length: enough for any image; text that goes on and on is cut short here."""


def encode_mask(mask: Mask) -> bytes:
    """Return the run lengths of a (H, W) bool mask, as COCO's `counts`."""
    counts: bytes = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts


def decode_mask(counts: bytes, size_hw: tuple[int, int]) -> Mask:
    """Return the (H, W) bool mask of run lengths as `encode_mask` makes them.

    Raises:
        ValueError: they do not add up to the size.
    """
    check_runs(run_lengths(counts), size_hw)
    mask: Mask = coco.decode({"counts": counts, "size": list(size_hw)}).astype(np.bool_)
    return mask


def run_lengths(counts: bytes) -> list[int]:
    """Return the run lengths of COCO's compressed RLE.

    Five bits a character, lowest first, a sixth says that more follow, the last sets the sign; from
    the third run on, differences to the run before the last (pycocotools, `common/maskApi.c`).

    Raises:
        ValueError: a character is none of the 64, or a run is longer than any image.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        if not _FIRST <= character <= _LAST or shift > _MOST_BITS:
            raise ValueError("counts are not run lengths")
        bits = character - _FIRST
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError("counts end within a run length")
    return runs


def check_runs(runs: Sequence[object], size_hw: tuple[int, int]) -> None:
    """Check that pycocotools, which trusts them, writes nothing beyond a mask.

    Raises:
        ValueError: one is no number of pixels, or they do not add up to the size.
    """
    numbers = [run for run in runs if type(run) is int and run >= 0]
    if len(numbers) < len(runs) or sum(numbers) != size_hw[0] * size_hw[1]:
        raise ValueError("the run lengths do not add up to the size of the image")
