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


@torch.inference_mode()
def validate(
    segmenter: Segmenter[Any], dataset: Dataset, sample_ids: Sequence[str]
) -> dict[str, float]:
    """Return mean IoUs in [0, 1] over the objects of some images, one trial per kind of prompt.

    Objects of fewer than `SMALL_AREA` pixels are left out, as are prompts that the segmenter does
    not accept; it must accept boxes. The result also has "quality", Spearman's correlation of
    predicted and true IoU for exact boxes, and "objects", the number of objects; if this is 0, it
    is the only entry.
    """
    accepted = {
        name: degradation
        for name, degradation in PROMPTS.items()
        if degradation.gives <= segmenter.info.prompts
    }
    ious: dict[str, list[Floats]] = defaultdict(list)
    qualities: list[Floats] = []
    for sample_id in sample_ids:
        sample = dataset[sample_id]
        instances = [instance for instance in sample.instances if instance.mask.sum() >= SMALL_AREA]
        if not instances:
            continue
        (embedding,) = segmenter.encode([sample.image])
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
                    ious[name].append(iou(mask[None], target).numpy(force=True))
                if name == "box":
                    qualities.append(prediction.quality[:, 0].numpy(force=True))
    if not qualities:
        return {"objects": 0}
    result = {name: float(np.concatenate(values).mean()) for name, values in ious.items()}
    true, predicted = np.concatenate(ious["box"]), np.concatenate(qualities)
    if len(true) > 1 and np.ptp(true) > 0 and np.ptp(predicted) > 0:
        result["quality"] = float(stats.spearmanr(predicted, true).statistic)
    return {**result, "objects": len(true)}
