"""A data set of pairs of an image and its masks in memory, from a list or a torch Dataset."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from samrobust.errors import DatasetError
from samrobust.types import DatasetInfo, Instance, Sample


class Pairs(Protocol):
    """A sequence of pairs, such as a list or a map-style torch Dataset."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        ...

    def __getitem__(self, index: int, /) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        """Return an image, (H, W, 3) uint8 RGB, and its masks, (N, H, W) or (H, W) bool."""
        ...


class PairsDataset:
    """A data set of pairs; the ids of images, and of the masks of each image, count from "0".

    Args:
        pairs: read once here, for the fingerprint, and again during the evaluation.
        name: used in tables and in the key of every prompt.

    Raises:
        DatasetError: there is no pair, or a pair is not an image with its masks.
    """

    def __init__(self, pairs: Pairs, name: str = "pairs") -> None:
        self._pairs = pairs
        if len(pairs) == 0:
            raise DatasetError(f"{name}: has no pair of an image and masks")
        digest = hashlib.sha256()
        for sample_id in self.ids():
            sample = self._sample(name, sample_id)
            digest.update(str(sample.image.shape).encode() + sample.image.tobytes())
            for instance in sample.instances:
                digest.update(np.packbits(instance.mask).tobytes())
        self.info = DatasetInfo(name, split="", fingerprint=digest.hexdigest()[:16])

    def ids(self) -> Sequence[str]:
        """Return "0", "1", ..., in the order of the pairs."""
        return [str(index) for index in range(len(self._pairs))]

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one image with its masks.

        Raises:
            DatasetError: it is not an image with masks.
        """
        return self._sample(self.info.name, sample_id)

    def _sample(self, name: str, sample_id: str) -> Sample:
        image, masks = map(np.asarray, self._pairs[int(sample_id)])
        masks = masks[None] if masks.ndim == 2 else masks
        try:
            instances = [Instance(str(n), mask.copy()) for n, mask in enumerate(masks)]
            return Sample(sample_id, image, instances)
        except ValueError as error:
            raise DatasetError(f"{name}: pair {sample_id}: {error}") from error
