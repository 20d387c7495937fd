"""Predict the masks of an image's prompts in batches, and select the candidates to score."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from samrobust.errors import SegmenterError
from samrobust.evaluation.prompts import Draws
from samrobust.metrics.overlap import iou
from samrobust.segmenters.device import to_device
from samrobust.types import Mask, Prediction, PromptBatch, Segmenter, SegmenterInfo, Selection

E = TypeVar("E")


class Predictor:
    """Predicts the masks of one image, in batches that mix instances and conditions.

    Args:
        segmenter: the segmenter.
        embedding: of the image.
        selection: which of several candidates is scored.
        batch_size: maximum number of prompts per forward pass.
        void: (H, W) bool, pixels that are removed from every mask; None for none.
    """

    def __init__(
        self,
        segmenter: Segmenter[E],
        embedding: E,
        selection: Selection,
        batch_size: int,
        *,
        void: Mask | None = None,
    ) -> None:
        self._segmenter: Segmenter[Any] = segmenter
        self._embedding = embedding
        self._selection = selection
        self._multimask = segmenter.info.multimask and selection != "single"
        self._batch_size = batch_size
        self._void = None if void is None else torch.from_numpy(void)
        self._finite: list[Tensor] = []

    def check_finite(self) -> None:
        """Check all predictions so far; call it once per image, as it waits for the device.

        Raises:
            SegmenterError: the quality of a mask is NaN or infinite.
        """
        check_finite(self._segmenter.info, self._finite)

    def all_masks(self, draws: Sequence[Draws]) -> Iterator[tuple[Draws, Tensor, Tensor]]:
        """Yield draws with masks (T, H, W) and target (H, W), bool, on the segmenter's device."""
        by_structure: dict[tuple[bool, int], list[Draws]] = defaultdict(list)
        for draw in draws:
            by_structure[draw.prompts.structure].append(draw)
        for group in by_structure.values():
            yield from self._masks_of_group(group)

    def _masks_of_group(self, group: Sequence[Draws]) -> Iterator[tuple[Draws, Tensor, Tensor]]:
        prompts = PromptBatch.join([draw.prompts for draw in group])
        candidates = _Queue()
        start = 0
        for draw in group:
            trials = len(draw.prompts)
            while candidates.n_waiting < trials:
                batch = prompts[start : start + self._batch_size]
                start += len(batch)
                predicted = self._segmenter.predict(
                    self._embedding, batch, multimask=self._multimask
                )
                self._finite.append(predicted.quality.isfinite().all())
                candidates.put(self._without_void(predicted))
            prediction = candidates.take(trials)
            target = to_device(torch.tensor(draw.instance.mask), prediction.masks.device)
            yield draw, _select(prediction, target, self._selection), target

    def _without_void(self, prediction: Prediction) -> Prediction:
        if self._void is None:
            return prediction
        valid = ~to_device(self._void, prediction.masks.device)
        return Prediction(prediction.masks & valid, prediction.quality)


def check_finite(info: SegmenterInfo, finite: Sequence[Tensor]) -> None:
    """Check that all predictions of a segmenter are finite.

    Args:
        info: of the segmenter, for the message.
        finite: () bool for each forward pass, whether its qualities are finite.

    Raises:
        SegmenterError: some are not.
    """
    if not torch.stack(list(finite)).all():
        raise SegmenterError(
            f"{info.label}: a prediction is not finite (NaN or infinite logits or quality)"
        )


class _Queue:
    """Predictions in the order of their prompts, put in by batch and taken out by condition."""

    def __init__(self) -> None:
        self._waiting: list[Prediction] = []

    @property
    def n_waiting(self) -> int:
        return sum(len(prediction.masks) for prediction in self._waiting)

    def put(self, prediction: Prediction) -> None:
        self._waiting.append(prediction)

    def take(self, n: int) -> Prediction:
        masks = torch.cat([prediction.masks for prediction in self._waiting])
        quality = torch.cat([prediction.quality for prediction in self._waiting])
        self._waiting = [Prediction(masks[n:], quality[n:])]
        return Prediction(masks[:n], quality[:n])


def _select(prediction: Prediction, target: Tensor, selection: Selection) -> Tensor:
    """Return (T, H, W), the selected candidate of each prompt."""
    if prediction.masks.shape[1] == 1:
        return prediction.masks[:, 0]
    if selection == "best-quality":
        best = prediction.quality.argmax(dim=1)
    else:
        best = iou(prediction.masks.flatten(0, 1), target).view(prediction.quality.shape).argmax(1)
    return prediction.masks[torch.arange(len(best), device=best.device), best]
