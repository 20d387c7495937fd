"""Look at images that were held out: how good a model in training is on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats

from samrobust.degradations.boxes import BoxNoise, ExactBox
from samrobust.degradations.points import RandomPoints
from samrobust.evaluation.inspection import LEAST_PIXELS
from samrobust.metrics.overlap import iou
from samrobust.seeding import keyed_generator
from samrobust.types import Dataset, Degradation, Floats, Instance, PromptBatch, Segmenter

PROMPTS: Mapping[str, Degradation] = {
    "box": ExactBox(),
    "box-noise-0.4": BoxNoise(0.4, 0.4),
    "points-1": RandomPoints(1),
    "points-3": RandomPoints(3),
}
"""What is asked, by the name under which the mean IoU is logged."""
PROMPTS_AT_ONCE = 16


@torch.inference_mode()
def judge(
    segmenter: Segmenter[Any], dataset: Dataset, sample_ids: Sequence[str]
) -> dict[str, float]:
    """Return mean IoUs in [0, 1] over the objects of some images, one trial each.

    What the segmenter does not accept is left out; it must accept boxes. Beside them "quality",
    Spearman's correlation of the predicted and the true IoU of the masks of the exact boxes, and
    "objects", how many there are; without an object nothing else.
    """
    asked = {name: each for name, each in PROMPTS.items() if each.gives <= segmenter.info.prompts}
    found: dict[str, list[Floats]] = {name: [] for name in asked}
    qualities: list[Floats] = []
    for sample_id in sample_ids:
        sample = dataset[sample_id]
        judged = [each for each in sample.instances if each.mask.sum() >= LEAST_PIXELS]
        if not judged:
            continue
        (embedding,) = segmenter.encode([sample.image])
        for name, degradation in asked.items():
            for start in range(0, len(judged), PROMPTS_AT_ONCE):
                instances = judged[start : start + PROMPTS_AT_ONCE]
                prompts = _draw(instances, degradation, sample_id)
                prediction = segmenter.predict(embedding, prompts)
                targets = torch.from_numpy(np.stack([each.mask for each in instances]))
                masks = prediction.masks[:, 0]
                pairs = zip(masks, targets.to(masks.device), strict=True)
                ious = [iou(mask[None], target).numpy(force=True) for mask, target in pairs]
                found[name].append(np.concatenate(ious))
                if name == "box":
                    qualities.append(prediction.quality[:, 0].numpy(force=True))
    n_objects = sum(map(len, qualities))
    if n_objects == 0:
        return {"objects": 0}
    result = {name: float(np.concatenate(values).mean()) for name, values in found.items()}
    true, own = np.concatenate(found["box"]), np.concatenate(qualities)
    if n_objects > 1 and np.ptp(true) > 0 and np.ptp(own) > 0:
        result["quality"] = float(stats.spearmanr(own, true).statistic)
    return {**result, "objects": n_objects}


def _draw(instances: Sequence[Instance], degradation: Degradation, sample_id: str) -> PromptBatch:
    return PromptBatch.stack(
        [
            degradation(each.mask, keyed_generator("judge", sample_id, each.instance_id))
            for each in instances
        ]
    )
