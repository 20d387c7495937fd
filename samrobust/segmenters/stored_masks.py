"""Masks that were made elsewhere, from prompts that `samrobust prompts export` wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samrobust.datasets.coco import decode_mask
from samrobust.errors import PromptError, SegmenterError
from samrobust.files import convert, errors_at
from samrobust.prompt_files import read_rows
from samrobust.seeding import prompt_hash
from samrobust.types import Image, Mask, Prediction, PromptBatch, Sample, SegmenterInfo, image_key


@dataclass(frozen=True)
class _Row:
    """A row of a file of masks.

    Attributes:
        image: as the exported prompt says.
        hash: of the prompt.
        segmentation: COCO's run lengths, a table of `size` and `counts`.
    """

    image: str
    hash: str
    segmentation: dict[str, Any]


@dataclass(frozen=True)
class _Place:
    """The embedding of an image: which one it is."""

    sample_id: str
    size_hw: tuple[int, int]


class StoredMasks:
    """A segmenter that answers with the masks of a file.

    A row of the file has the columns `image` and `hash` of an exported prompt, and `segmentation`,
    the mask as run lengths of COCO: `{"size": [height, width], "counts": ...}`. It is CSV, JSON
    lines or Parquet.

    Args:
        path: of the file.
        name: of the model, for tables.

    Raises:
        PromptError: the file cannot be read, a row is wrong, or a prompt has two masks.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        digest, rows = read_rows(path, ("image", "hash"))
        self._masks: dict[tuple[str, str], Mapping[str, Any]] = {}
        for place, plain in rows:
            with errors_at(f"{path}, {place}", PromptError):
                row = convert(plain, _Row, where="the row", ignore_unknown=True)
                key = image_key(row.image), row.hash
                if self._masks.setdefault(key, row.segmentation) != row.segmentation:
                    raise ValueError(f"image '{row.image}' has another mask for {row.hash}")
        self.info = SegmenterInfo(
            name,
            frozenset({"box", "points"}),
            checkpoint_sha256=digest,
            settings={"masks": path.name},
        )

    def encode(self, images: Sequence[Image]) -> list[_Place]:  # noqa: ARG002
        """Refuse to answer for an image that is not known by its id.

        Raises:
            SegmenterError: always.
        """
        raise SegmenterError(f"{self._path}: has masks of images of a data set only")

    def encode_sample(self, sample: Sample) -> _Place:
        """Return which image it is."""
        height, width = sample.image.shape[:2]
        return _Place(sample.sample_id, (height, width))

    def predict(
        self,
        embedding: _Place,
        prompts: PromptBatch,
        *,
        multimask: bool = False,  # noqa: ARG002
    ) -> Prediction:
        """Return the stored masks of N prompts, (N, 1, H, W), on the CPU.

        Raises:
            SegmenterError: a prompt has no mask, or one that is not of the image's size.
        """
        masks = np.stack([self._mask(embedding, prompt_hash(each)) for each in prompts.split()])
        return Prediction(torch.from_numpy(masks[:, None]), quality=torch.zeros(len(prompts), 1))

    def _mask(self, place: _Place, prompt: str) -> Mask:
        segmentation = self._masks.get((image_key(place.sample_id), prompt))
        where = f"{self._path}: image '{place.sample_id}', prompt {prompt}"
        if segmentation is None:
            raise SegmenterError(f"{where} has no mask")
        with errors_at(where, SegmenterError):
            return decode_mask(dict(segmentation), place.size_hw, "its mask")
