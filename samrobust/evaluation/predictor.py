"""Predict the masks of an image's prompts in batches, and select the candidates to score."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from samrobust.errors import SegmenterError
from samrobust.evaluation.prompts import Draws
from samrobust.metrics.overlap import iou
from samrobust.segmenters.device import to_device
from samrobust.segmenters.frames import MASK_THRESHOLD
from samrobust.types import Mask, Prediction, PromptBatch, Segmenter, SegmenterInfo, Selection

E = TypeVar("E")


@dataclass(frozen=True)
class Selected:
    """The masks of one condition and instance that are scored, on the segmenter's device.

    Attributes:
        draws: the prompts.
        masks: threshold of the logits -> (T, H, W) bool.
        target: (H, W) bool.
        quality: (T,) float32, the segmenter's own estimate of their IoU.
        gap: (T,) float64, IoU of the best candidate less that of the candidate of the highest
            quality; None where there is one candidate.
        logits: (T, h, w) float32 of the masks, None where they are not wanted or not given.
        gradients: (T, 4) float32 of the boxes, None where they are not wanted.
    """

    draws: Draws
    masks: Mapping[float, Tensor]
    target: Tensor
    quality: Tensor
    gap: Tensor | None
    logits: Tensor | None = None
    gradients: Tensor | None = None


class Predictor:
    """Predicts the masks of one image, in batches that mix instances and conditions.

    Args:
        segmenter: the segmenter.
        embedding: of the image.
        selection: which of several candidates is scored.
        batch_size: maximum number of prompts per forward pass.
        void: (H, W) bool, pixels that are removed from every mask; None for none.
        thresholds: of the logits, the first one 0; the segmenter has `predict_at` where there are
            several.
    """

    def __init__(
        self,
        segmenter: Segmenter[E],
        embedding: E,
        selection: Selection,
        batch_size: int,
        *,
        void: Mask | None = None,
        thresholds: Sequence[float] = (MASK_THRESHOLD,),
    ) -> None:
        self._segmenter: Any = segmenter
        self._thresholds = thresholds
        self._embedding = embedding
        self._selection = selection
        self._batch_size = batch_size
        self._void = None if void is None else torch.from_numpy(void)
        self._finite: list[Tensor] = []

    def check_finite(self) -> None:
        """Check all predictions so far; call it once per image, as it waits for the device.

        Raises:
            SegmenterError: the quality of a mask is NaN or infinite.
        """
        check_finite(self._segmenter.info, self._finite)

    def all_masks(
        self,
        draws: Sequence[Draws],
        *,
        selection: Selection | None = None,
        with_logits: bool = False,
        with_gradients: bool = False,
    ) -> Iterator[Selected]:
        """Yield the masks that are scored, by instance and condition.

        Args:
            draws: the prompts.
            selection: which of several candidates is scored, in place of the predictor's own.
            with_logits: whether logits are wanted too.
            with_gradients: whether gradients are wanted too; the prompts are boxes, and the
                segmenter gives gradients.
        """
        by_structure: dict[tuple[bool, int, bool], list[Draws]] = defaultdict(list)
        for draw in draws:
            by_structure[draw.prompts.structure].append(draw)
        for group in by_structure.values():
            yield from self._masks_of_group(
                group,
                selection or self._selection,
                with_logits=with_logits,
                with_gradients=with_gradients,
            )

    def each_mask(self, prompts: PromptBatch) -> Iterator[tuple[Mask, float]]:
        """Yield the mask of each prompt, (H, W) bool, of the highest quality, and its quality."""
        for start in range(0, len(prompts), self._batch_size):
            batch = prompts[start : start + self._batch_size]
            found = self._without_void(self._predict(batch, self._selection))
            self._finite.append(found.quality.isfinite().all())
            quality = found.quality[:, : found.quality.shape[1] // len(self._thresholds)]
            row = torch.arange(len(batch), device=quality.device)
            best = quality.argmax(dim=1)
            chosen = found.masks[row, best].numpy(force=True), quality[row, best].tolist()
            yield from zip(*chosen, strict=True)

    def _masks_of_group(
        self,
        group: Sequence[Draws],
        selection: Selection,
        *,
        with_logits: bool,
        with_gradients: bool,
    ) -> Iterator[Selected]:
        prompts = PromptBatch.join([draw.prompts for draw in group])
        owners = [draw for draw in group for _ in range(len(draw.prompts))]
        candidates = _Queue()
        instance, target = None, torch.empty(0)  # draws come instance by instance
        start = 0
        for draw in group:
            trials = len(draw.prompts)
            while candidates.n_waiting < trials:
                rows = slice(start, start + self._batch_size)
                batch = prompts[rows]
                start += len(batch)
                if with_gradients:
                    wanted = np.stack([owner.instance.mask for owner in owners[rows]])
                    predicted = self._predict_with_gradients(batch, wanted, selection)
                else:
                    predicted = self._predict(batch, selection)
                self._finite.append(predicted.quality.isfinite().all())
                if not with_logits:
                    predicted = replace(predicted, logits=None)
                candidates.put(self._without_void(predicted))
            prediction = candidates.take(trials)
            if draw.instance is not instance:
                instance = draw.instance
                target = to_device(torch.tensor(instance.mask), prediction.masks.device)
            yield self._select(draw, prediction, target, selection)

    def _predict(self, prompts: PromptBatch, selection: Selection) -> Prediction:
        """Return the candidates at all thresholds after each other, those at 0 first.

        Logits stand there once per threshold too.
        """
        multimask = self._segmenter.info.multimask and selection != "single"
        if len(self._thresholds) == 1:
            found: Prediction = self._segmenter.predict(
                self._embedding, prompts, multimask=multimask
            )
            return found
        at_each = self._segmenter.predict_at(
            self._embedding, prompts, self._thresholds, multimask=multimask
        )
        return _together(at_each, dim=1)

    def _predict_with_gradients(
        self, prompts: PromptBatch, targets: Mask, selection: Selection
    ) -> Prediction:
        """Return what `_predict` does, with gradients, which must be finite too."""
        found: list[Prediction] = self._segmenter.predict_with_gradients(
            self._embedding,
            prompts,
            torch.from_numpy(targets),
            self._thresholds,
            selection=selection,
        )
        together = _together(found, dim=1)
        if together.gradients is not None:
            self._finite.append(together.gradients.isfinite().all())
        return together

    def _select(
        self, draw: Draws, prediction: Prediction, target: Tensor, selection: Selection
    ) -> Selected:
        """Return the selected candidate of each prompt, at all thresholds."""
        n_candidates = prediction.masks.shape[1] // len(self._thresholds)
        quality, logits = prediction.quality[:, :n_candidates], prediction.logits
        if n_candidates == 1:
            at_each = zip(self._thresholds, prediction.masks.unbind(1), strict=True)
            single = None if logits is None else logits[:, 0]
            masks = dict(at_each)
            return Selected(draw, masks, target, quality[:, 0], None, single, prediction.gradients)
        row = torch.arange(len(quality), device=quality.device)
        candidates = prediction.masks[:, :n_candidates].flatten(0, 1)
        ious = iou(candidates, target).view(quality.shape)
        best, believed = ious.argmax(dim=1), quality.argmax(dim=1)
        gap = ious[row, best] - ious[row, believed]
        chosen = best if selection == "oracle" else believed
        masks = {
            threshold: prediction.masks[row, place * n_candidates + chosen]
            for place, threshold in enumerate(self._thresholds)
        }
        of_chosen = None if logits is None else logits[row, chosen]
        gradients = prediction.gradients
        return Selected(draw, masks, target, quality[row, chosen], gap, of_chosen, gradients)

    def _without_void(self, prediction: Prediction) -> Prediction:
        if self._void is None:
            return prediction
        valid = ~to_device(self._void, prediction.masks.device)
        return replace(prediction, masks=prediction.masks & valid)


def check_finite(info: SegmenterInfo, finite: Sequence[Tensor]) -> None:
    """Check that all predictions of a segmenter are finite.

    Args:
        info: of the segmenter, for the message.
        finite: () bool for each forward pass, whether its qualities are finite.

    Raises:
        SegmenterError: some are not.
    """
    if finite and not torch.stack(list(finite)).all():
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
        waiting = _together(self._waiting, dim=0)
        self._waiting = [_rows(waiting, slice(n, None))]
        return _rows(waiting, slice(n))


def _together(predictions: Sequence[Prediction], *, dim: int) -> Prediction:
    """Return predictions after each other, along prompts (0) or candidates (1)."""
    if len(predictions) == 1:
        return predictions[0]  # not copied
    logits = [prediction.logits for prediction in predictions if prediction.logits is not None]
    gradients = [each.gradients for each in predictions if each.gradients is not None]
    if dim == 1:  # of each prompt one
        gradients = gradients[:1]
    return Prediction(
        torch.cat([prediction.masks for prediction in predictions], dim),
        torch.cat([prediction.quality for prediction in predictions], dim),
        torch.cat(logits, dim) if len(logits) == len(predictions) else None,
        torch.cat(gradients) if gradients else None,
    )


def _rows(prediction: Prediction, rows: slice) -> Prediction:
    logits = None if prediction.logits is None else prediction.logits[rows]
    gradients = None if prediction.gradients is None else prediction.gradients[rows]
    return Prediction(prediction.masks[rows], prediction.quality[rows], logits, gradients)
