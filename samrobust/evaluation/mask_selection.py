"""Which masks of an image are stored for the gallery, and the photograph under them."""

import io
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from samrobust.datasets.coco import encode_mask
from samrobust.evaluation.prompts import Draws
from samrobust.metrics.overlap import iou
from samrobust.runs.manifest import TARGET_TRIAL, Kept, MaskRow, PhotographRow
from samrobust.types import Keep, Sample

FIRST_TRIALS = 3
"""Trials that are kept whatever they are, beside the one of lowest IoU."""
LONGEST_SIDE = 1024
"""Of a stored photograph, in pixels."""
JPEG_QUALITY = 85


@dataclass(frozen=True)
class _Candidate:
    """The masks of one object and condition that may be kept."""

    rows: tuple[MaskRow, ...]
    mean: float
    lowest: float


class MaskKeeper:
    """Chooses the masks of one image as they are scored.

    "all" keeps every mask. "worst" keeps two objects in each condition: the one that loses most in
    its lowest trial against the mean of its best other condition (against a perfect mask where
    there is no other), and the largest, which is the same for every segmenter. Of these, the first
    3 trials and the lowest are kept.

    Args:
        sample: the image.
        keep: "worst" or "all".
    """

    def __init__(self, sample: Sample, keep: Keep) -> None:
        self._sample = sample
        self._keep = keep
        self._candidates: dict[str, dict[str, _Candidate]] = defaultdict(dict)

    def add(self, draws: Draws, masks: Tensor, target: Tensor) -> None:
        """Take the (T, H, W) masks of one object and condition, and its (H, W) target."""
        ious = iou(masks, target)
        trials = list(range(len(masks)))
        if self._keep == "worst":
            trials = sorted({*trials[:FIRST_TRIALS], int(ious.argmin())})
        chosen = masks[torch.tensor(trials, device=masks.device)].numpy(force=True)
        rows = [
            self._row(draws, trial, encode_mask(mask))
            for trial, mask in zip(trials, chosen, strict=True)
        ]
        found = _Candidate(tuple(rows), ious.mean().item(), ious.min().item())
        self._candidates[draws.instance.instance_id][draws.condition.name] = found

    def kept(self) -> Kept:
        """Return what is kept of the image; every object with a mask comes with its target."""
        chosen = {
            instance_id: list(candidates) for instance_id, candidates in self._candidates.items()
        }
        if self._keep == "worst":
            chosen = self._worst()
        masks: list[MaskRow] = []
        for instance in self._sample.instances:
            rows = [
                row
                for condition in chosen.get(instance.instance_id, ())
                for row in self._candidates[instance.instance_id][condition].rows
            ]
            if rows:
                where = (self._sample.sample_id, instance.instance_id)
                masks += [MaskRow(*where, "", TARGET_TRIAL, encode_mask(instance.mask)), *rows]
        height, width = self._sample.image.shape[:2]
        jpeg = _jpeg(self._sample)
        photograph = PhotographRow(self._sample.sample_id, height, width, jpeg, self._keep)
        return Kept(photograph, tuple(masks))

    def _worst(self) -> dict[str, list[str]]:
        largest = max(self._sample.instances, key=lambda each: np.count_nonzero(each.mask))
        chosen: dict[str, list[str]] = defaultdict(list)
        for condition in self._candidates[largest.instance_id]:
            drops = {name: self._drop(name, condition) for name in self._candidates}
            for name in {max(drops, key=drops.__getitem__), largest.instance_id}:
                chosen[name].append(condition)
        return chosen

    def _drop(self, instance_id: str, condition: str) -> float:
        candidates = self._candidates[instance_id]
        others = [each.mean for name, each in candidates.items() if name != condition]
        return max(others, default=1.0) - candidates[condition].lowest

    def _row(self, draws: Draws, trial: int, counts: bytes) -> MaskRow:
        prompts = draws.prompts
        return MaskRow(
            self._sample.sample_id,
            draws.instance.instance_id,
            draws.condition.name,
            trial,
            counts,
            () if prompts.boxes is None else prompts.boxes[trial].tolist(),
            prompts.points[trial].ravel().tolist(),
            prompts.labels[trial].tolist(),
        )


def _jpeg(sample: Sample) -> bytes:
    picture = PillowImage.fromarray(sample.image)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
