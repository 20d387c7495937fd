"""From the prompts of an image to the masks that count, in batches of bounded size."""

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
    """The masks of one image's draws, in calls that mix instances and conditions.

    Args:
        segmenter: that is asked.
        embedding: of the image.
        selection: which of several candidates counts.
        batch_size: prompts in one call, at most.
        void: (H, W) bool, pixels that are taken from every mask; None for none.
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
        """Raise where an answer was not finite; once an image, as it waits for the device.

        Raises:
            SegmenterError: the quality of a mask is not a number, or not finite.
        """
        check_finite(self._segmenter.info, self._finite)

    def all_masks(self, draws: Sequence[Draws]) -> Iterator[tuple[Draws, Tensor, Tensor]]:
        """Yield each draw with its masks (T, H, W) and its target (H, W), bool, on the device."""
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
                found = self._segmenter.predict(self._embedding, batch, multimask=self._multimask)
                self._finite.append(found.quality.isfinite().all())
                candidates.put(self._without_void(found))
            prediction = candidates.take(trials)
            target = to_device(torch.tensor(draw.instance.mask), prediction.masks.device)
            yield draw, _select(prediction, target, self._selection), target

    def _without_void(self, found: Prediction) -> Prediction:
        if self._void is None:
            return found
        outside = ~to_device(self._void, found.masks.device)
        return Prediction(found.masks & outside, found.quality)


def check_finite(info: SegmenterInfo, finite: Sequence[Tensor]) -> None:
    """Check that a segmenter's answers were finite.

    Args:
        info: of the segmenter, for the message.
        finite: () bool each, whether the qualities of a call were.

    Raises:
        SegmenterError: some were not.
    """
    if not torch.stack(list(finite)).all():
        raise SegmenterError(
            f"{info.label}: an answer is not finite (NaN or infinite logits or quality)"
        )


class _Queue:
    """Predictions put in as they are made and taken out as many at a time as a condition has."""

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
    """Return (T, H, W), the candidate of each prompt that counts."""
    if prediction.masks.shape[1] == 1:
        return prediction.masks[:, 0]
    if selection == "best-quality":
        best = prediction.quality.argmax(dim=1)
    else:
        best = iou(prediction.masks.flatten(0, 1), target).view(prediction.quality.shape).argmax(1)
    return prediction.masks[torch.arange(len(best), device=best.device), best]
