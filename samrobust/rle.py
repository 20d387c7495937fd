"""Masks as COCO's compressed run lengths: a few hundred bytes instead of a pixel each."""

import numpy as np
from pycocotools import mask as coco

from samrobust.types import Mask


def encode_mask(mask: Mask) -> bytes:
    """Return the run lengths of a (H, W) bool mask, as COCO's `counts`."""
    counts: bytes = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts


def decode_mask(counts: bytes, size_hw: tuple[int, int]) -> Mask:
    """Return the (H, W) bool mask of run lengths that `encode_mask` made."""
    mask: Mask = coco.decode({"counts": counts, "size": list(size_hw)}).astype(np.bool_)
    return mask
