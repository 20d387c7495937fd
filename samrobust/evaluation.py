"""The evaluation loop: drawn images in, scores out; it knows no disk and no terminal."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from samrobust.drawing import DrawnSample, Draws, draw_sample
from samrobust.errors import DatasetError, ProtocolError, SegmenterError
from samrobust.interfaces import Dataset, EvalProtocol, Metric, Segmenter
from samrobust.kept import MaskKeeper
from samrobust.metrics import METRICS
from samrobust.metrics.overlap import DILATION_RATIO, iou
from samrobust.seeding import combined_hash
from samrobust.segmenters.device import to_device
from samrobust.types import (
    Keep,
    Kept,
    ObjectRow,
    Prediction,
    PromptBatch,
    Sample,
    Score,
    SegmenterInfo,
    Selection,
)

T = TypeVar("T")

SCORE_CONSTANTS = {"boundary_dilation_ratio": DILATION_RATIO}
"""What every score depends on besides protocol, data and segmenter; stands in the manifest."""
MASK_BYTES = 2**27
"""Bound on the masks of one call of a segmenter, so that huge photographs fit into memory."""
ALL_TRIALS = -1
"""The trial of a score over all trials."""


@dataclass(frozen=True)
class Failure:
    """An image that cannot be evaluated, and why."""

    sample_id: str
    reason: str


@dataclass(frozen=True)
class Evaluated:
    """All scores of one image, what its objects are, and the masks that are kept, if any.

    `busy_s` are the seconds in which it was encoded, predicted and scored, without waiting for it
    to be loaded.
    """

    sample_id: str
    scores: tuple[Score, ...]
    n_prompts: int
    objects: tuple[ObjectRow, ...] = ()
    kept: Kept | None = None
    busy_s: float = 0.0


@dataclass(frozen=True)
class LoopOptions:
    """How to run; nothing here changes a score.

    Attributes:
        prompts_at_once: prompts in one call of the segmenter, at most.
        workers: processes that decode images and draw prompts ahead; 0 for none.
        keep_going: yield a failure instead of raising it.
        keep_masks: which masks are yielded with the scores.
    """

    prompts_at_once: int = 16
    workers: int = 0
    keep_going: bool = False
    keep_masks: Keep = "none"


def check_can_run(info: SegmenterInfo, protocol: EvalProtocol) -> None:
    """Check that a segmenter takes every prompt of a protocol, and that there will be scores.

    Raises:
        SegmenterError: it does not; the message names both.
        ProtocolError: every metric is over trials, and no condition has two.
    """
    metrics = [METRICS.load(name) for name in protocol.metrics]
    most_trials = max(condition.trials for condition in protocol.conditions)
    if most_trials < 2 and all(metric.over_trials for metric in metrics):
        raise ProtocolError(
            f"protocol {protocol.name}: {', '.join(protocol.metrics)} needs two trials or more, "
            "every condition has one"
        )
    for condition in protocol.conditions:
        missing = condition.degradation.gives - info.prompts
        if missing:
            raise SegmenterError(
                f"protocol {protocol.name}: condition '{condition.name}' gives "
                f"{' and '.join(sorted(missing))}, segmenter {info.label} accepts "
                f"{', '.join(sorted(info.prompts))}"
            )


def evaluate(
    segmenter: Segmenter[Any],
    dataset: Dataset,
    protocol: EvalProtocol,
    *,
    sample_ids: Sequence[str],
    options: LoopOptions,
) -> Iterator[Evaluated | Failure]:
    """Yield the scores of each image, in the order of `sample_ids`.

    Each image is encoded once; the prompts of all its instances and conditions that share a
    structure go through the segmenter together; masks are scored on the device that holds them.

    Raises:
        DatasetError: an image or mask cannot be read, unless told to keep going.
        SegmenterError: the segmenter does not take the protocol's prompts, or its memory ends.
    """
    check_can_run(segmenter.info, protocol)
    metrics = [METRICS.load(name) for name in protocol.metrics]
    loader: DataLoader[DrawnSample | Failure] = DataLoader(
        _Drawing(dataset, protocol, sample_ids),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=min(options.workers, len(sample_ids)),
        collate_fn=as_it_is,
        worker_init_fn=end_with_parent,
    )
    for drawn in loader:
        if isinstance(drawn, Failure):
            if not options.keep_going:
                raise DatasetError(drawn.reason)
            yield drawn
        else:
            yield _score_sample(segmenter, drawn, protocol, metrics, options)


class _Drawing:
    """What the loader's processes run: decode one image and draw its prompts."""

    def __init__(self, dataset: Dataset, protocol: EvalProtocol, ids: Sequence[str]) -> None:
        self._dataset = dataset
        self._protocol = protocol
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> DrawnSample | Failure:
        sample_id = self._ids[index]
        try:
            return draw_sample(self._dataset[sample_id], self._dataset.info.key, self._protocol)
        except (DatasetError, ValueError) as error:  # the latter from a plug-in's broken sample
            return Failure(sample_id, str(error))


def end_with_parent(_worker: int) -> None:
    """Let a loading process end when its parent is killed, instead of waiting for it for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def as_it_is(drawn: T) -> T:
    """Return what a loading process made, without making tensors of it."""
    return drawn


@torch.inference_mode()
def _score_sample(
    segmenter: Segmenter[Any],
    drawn: DrawnSample,
    protocol: EvalProtocol,
    metrics: Sequence[Metric],
    options: LoopOptions,
) -> Evaluated:
    sample, started = drawn.sample, time.perf_counter()
    predict = _Predictor(segmenter, sample, protocol.selection, options.prompts_at_once)
    keeper = None if options.keep_masks == "none" else MaskKeeper(sample, options.keep_masks)
    scores: list[Score] = []
    try:
        for draws, masks, target in predict.all_masks(drawn.draws):
            if keeper is not None:
                keeper.add(draws, masks, target)
            for metric in metrics:
                scores.extend(_scores(sample.sample_id, draws, metric, masks, target))
    except torch.OutOfMemoryError as error:
        raise SegmenterError(
            f"{segmenter.info.label}: out of device memory with {options.prompts_at_once} prompts "
            "at once; lower --prompts-at-once"
        ) from error
    n_prompts = sum(len(draws.prompts) for draws in drawn.draws)
    kept = None if keeper is None else keeper.kept()
    busy_s = time.perf_counter() - started  # scores are numbers here: no device lags behind
    return Evaluated(sample.sample_id, tuple(scores), n_prompts, drawn.objects, kept, busy_s)


class _Predictor:
    """The masks of one image's draws, in calls that mix instances and conditions."""

    def __init__(
        self, segmenter: Segmenter[Any], sample: Sample, selection: Selection, at_once: int
    ) -> None:
        self._segmenter = segmenter
        self._selection = selection
        self._multimask = segmenter.info.multimask and selection != "single"
        height, width = sample.image.shape[:2]
        self._at_once = max(1, min(at_once, MASK_BYTES // (height * width)))
        (self._embedding,) = segmenter.encode([sample.image])

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
                batch = prompts[start : start + self._at_once]
                start += len(batch)
                candidates.put(
                    self._segmenter.predict(self._embedding, batch, multimask=self._multimask)
                )
            prediction = candidates.take(trials)
            target = to_device(torch.tensor(draw.instance.mask), prediction.masks.device)
            yield draw, _select(prediction, target, self._selection), target


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


def _scores(
    sample_id: str, draws: Draws, metric: Metric, masks: Tensor, target: Tensor
) -> list[Score]:
    def score(trial: int, value: float, prompts: str) -> Score:
        where = (sample_id, draws.instance.instance_id, draws.condition.name)
        return Score(*where, trial, metric.name, value, prompts)

    if metric.over_trials and len(masks) < 2:
        return []
    values = metric.fn(masks, target).tolist()
    if metric.over_trials:
        return [score(ALL_TRIALS, values[0], combined_hash(draws.hashes))]
    return [
        score(trial, value, prompts)
        for trial, (value, prompts) in enumerate(zip(values, draws.hashes, strict=True))
    ]
