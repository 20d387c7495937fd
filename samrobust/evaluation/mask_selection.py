"""Select the masks of an image that are stored for the gallery, with their photograph."""

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
from samrobust.types import NO_POINT, Keep, Sample

FIRST_TRIALS = 3
"""Trials that are always stored, besides the one of lowest IoU."""
LONGEST_SIDE = 1024
"""Of a stored photograph, in pixels."""
JPEG_QUALITY = 85


@dataclass(frozen=True)
class _Candidate:
    """The masks of one object and condition that may be stored."""

    rows: tuple[MaskRow, ...]
    mean: float
    lowest: float


class MaskSelector:
    """Selects the masks of one image while they are scored.

    "all" selects every mask. "worst" selects two objects per condition: the largest, which is the
    same for every segmenter, and the one with the largest drop from its best mean in another
    condition (1 if there is no other) to its lowest trial. Of each, the first 3 trials and the
    lowest are stored.

    Args:
        sample: the image.
        keep: "worst" or "all".
    """

    def __init__(self, sample: Sample, keep: Keep) -> None:
        self._sample = sample
        self._keep = keep
        self._candidates: dict[str, dict[str, _Candidate]] = defaultdict(dict)

    def add(self, draws: Draws, masks: Tensor, target: Tensor) -> None:
        """Add the (T, H, W) masks of one object and condition, with the (H, W) target."""
        ious = iou(masks, target)
        trials = list(range(len(masks)))
        if self._keep == "worst":
            trials = sorted({*trials[:FIRST_TRIALS], int(ious.argmin())})
        chosen = masks[torch.tensor(trials, device=masks.device)].numpy(force=True)
        rows = [
            self._row(draws, trial, encode_mask(mask))
            for trial, mask in zip(trials, chosen, strict=True)
        ]
        candidate = _Candidate(tuple(rows), ious.mean().item(), ious.min().item())
        self._candidates[draws.instance.instance_id][draws.condition.name] = candidate

    def selected(self) -> Kept:
        """Return the photograph and the selected masks; each object's target comes before them."""
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
        sample = self._sample
        height, width = sample.image.shape[:2]
        photograph = PhotographRow(
            sample.sample_id, height, width, _jpeg(sample), self._keep, sample.file_name
        )
        return Kept(photograph, tuple(masks))

    def _worst(self) -> dict[str, list[str]]:
        largest = max(self._sample.instances, key=lambda one: np.count_nonzero(one.mask))
        chosen: dict[str, list[str]] = defaultdict(list)
        for condition in self._candidates[largest.instance_id]:
            drops = {name: self._drop(name, condition) for name in self._candidates}
            for name in {max(drops, key=drops.__getitem__), largest.instance_id}:
                chosen[name].append(condition)
        return chosen

    def _drop(self, instance_id: str, condition: str) -> float:
        candidates = self._candidates[instance_id]
        means = [other.mean for name, other in candidates.items() if name != condition]
        return max(means, default=1.0) - candidates[condition].lowest

    def _row(self, draws: Draws, trial: int, counts: bytes) -> MaskRow:
        prompts = draws.prompts
        given = prompts.labels[trial] != NO_POINT
        return MaskRow(
            self._sample.sample_id,
            draws.instance.instance_id,
            draws.condition.name,
            trial,
            counts,
            () if prompts.boxes is None else prompts.boxes[trial].tolist(),
            prompts.points[trial][given].ravel().tolist(),
            prompts.labels[trial][given].tolist(),
        )


def _jpeg(sample: Sample) -> bytes:
    picture = PillowImage.fromarray(sample.image)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
