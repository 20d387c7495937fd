"""Validate a model during training on held-out images."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from samrobust.degradations.boxes import BoxNoise, ExactBox
from samrobust.degradations.points import RandomPoints
from samrobust.geometry import SMALL_AREA
from samrobust.metrics.overlap import iou
from samrobust.seeding import keyed_generator
from samrobust.types import Dataset, Degradation, Floats, PromptBatch, Segmenter

PROMPTS: Mapping[str, Degradation] = {
    "box": ExactBox(),
    "box-noise-0.4": BoxNoise(0.4, 0.4),
    "points-1": RandomPoints(1),
    "points-3": RandomPoints(3),
}
"""Name under which the mean IoU is logged -> kind of prompt."""
BATCH_SIZE = 16
"""Prompts per forward pass."""


def validate(
    segmenter: Segmenter[Any], dataset: Dataset, sample_ids: Sequence[str]
) -> dict[str, float]:
    """Return mean IoUs in [0, 1] over the objects of some images, one trial per kind of prompt.

    Objects of fewer than `SMALL_AREA` pixels are left out, as are prompts that the segmenter does
    not accept; it must accept boxes. The result also has "quality", Spearman's correlation of
    predicted and true IoU for exact boxes, and "objects", the number of objects; if this is 0, it
    is the only entry.
    """
    return mean_scores(image_scores(segmenter, dataset, sample_ids))


def mean_scores(of_images: Sequence[Mapping[str, Floats]]) -> dict[str, float]:
    """Return what `validate` does, of what `image_scores` returned."""
    if not of_images:
        return {"objects": 0}
    scores = {name: np.concatenate([one[name] for one in of_images]) for name in of_images[0]}
    predicted, true = scores.pop("quality"), scores["box"]
    result = {name: float(ious.mean()) for name, ious in scores.items()}
    if len(true) > 1 and np.ptp(true) > 0 and np.ptp(predicted) > 0:
        result["quality"] = float(stats.spearmanr(predicted, true).statistic)
    return {**result, "objects": len(true)}


@torch.inference_mode()
def image_scores(
    segmenter: Segmenter[Any], dataset: Dataset, sample_ids: Sequence[str]
) -> list[dict[str, Floats]]:
    """Return what `validate` takes the means of, for each image with objects.

    Returns:
        name of the kind of prompt -> (O,) IoU of each object; "quality" -> (O,) its predicted IoU
        for the exact box.
    """
    accepted = {
        name: degradation
        for name, degradation in PROMPTS.items()
        if degradation.gives <= segmenter.info.prompts
    }
    of_images = []
    for sample_id in sample_ids:
        sample = dataset[sample_id]
        instances = [instance for instance in sample.instances if instance.mask.sum() >= SMALL_AREA]
        if not instances:
            continue
        (embedding,) = segmenter.encode([sample.image])
        scores: dict[str, list[Floats]] = defaultdict(list)
        for name, degradation in accepted.items():
            for start in range(0, len(instances), BATCH_SIZE):
                batch = instances[start : start + BATCH_SIZE]
                # published numbers depend on the first word of the key
                drawn = [
                    degradation(
                        instance.mask, keyed_generator("judge", sample_id, instance.instance_id)
                    )
                    for instance in batch
                ]
                prediction = segmenter.predict(embedding, PromptBatch.stack(drawn))
                for mask, instance in zip(prediction.masks[:, 0], batch, strict=True):
                    target = torch.from_numpy(instance.mask.copy()).to(mask.device)
                    scores[name].append(iou(mask[None], target).numpy(force=True))
                if name == "box":
                    scores["quality"].append(prediction.quality[:, 0].numpy(force=True))
        of_images.append({name: np.concatenate(values) for name, values in scores.items()})
    return of_images
