from collections.abc import Sequence

import torch
from torch import Tensor

from samrobust.types import Image, Prediction, PromptBatch, SegmenterInfo, SegmenterOptions


class Threshold:
    """Everything in the box that is brighter than its mean."""

    info = SegmenterInfo("threshold", prompts=frozenset({"box"}))

    def encode(self, images: Sequence[Image]) -> list[Tensor]:
        return [torch.tensor(image).float().mean(-1) for image in images]

    def predict(
        self, embedding: Tensor, prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        masks = torch.zeros(len(prompts), 1, *embedding.shape, dtype=torch.bool)
        assert prompts.boxes is not None  # it accepts nothing else, and is given nothing else
        for mask, (x0, y0, x1, y1) in zip(masks, prompts.boxes.round().astype(int), strict=True):
            inside = embedding[y0 : y1 + 1, x0 : x1 + 1]
            mask[0, y0 : y1 + 1, x0 : x1 + 1] = inside > inside.mean()
        return Prediction(masks, quality=torch.zeros(len(prompts), 1))


def build(options: SegmenterOptions) -> Threshold:
    return Threshold()
