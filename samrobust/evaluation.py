"""The evaluation loop: drawn images in, scores out; it knows no disk and no terminal."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from samrobust.drawing import DrawnSample, Draws, draw_sample
from samrobust.errors import DatasetError, ProtocolError, SegmenterError
from samrobust.interfaces import Dataset, EvalProtocol, Metric, Segmenter
from samrobust.kept import MaskKeeper
from samrobust.loading import as_it_is, end_with_parent
from samrobust.metrics import METRICS
from samrobust.metrics.overlap import DILATION_RATIO, iou
from samrobust.seeding import combined_hash
from samrobust.segmenters.device import release_memory, says_out_of_memory, to_device
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

E = TypeVar("E")

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

    `halvings` is that of the options, or more where memory ended on this image. `busy_s` are the
    seconds in which it was encoded, predicted and scored, without waiting for it to be loaded.
    """

    sample_id: str
    scores: tuple[Score, ...]
    n_prompts: int
    halvings: int
    objects: tuple[ObjectRow, ...] = ()
    kept: Kept | None = None
    busy_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class LoopOptions:
    """How to run; nothing here changes a score.

    Attributes:
        prompts_at_once: prompts in one call of the segmenter, at most.
        workers: processes that decode images and draw prompts ahead; 0 for none.
        keep_going: yield a failure instead of raising it.
        keep_masks: which masks are yielded with the scores.
        halvings: how often the number of prompts in one call is halved; once more wherever the
            device's memory ends, for all that follows.
    """

    prompts_at_once: int = 16
    workers: int = 0
    keep_going: bool = False
    keep_masks: Keep = "none"
    halvings: int = 0


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
        SegmenterError: the segmenter does not take the protocol's prompts. Unless told to keep
            going: its memory ends with a single prompt, or what it answers is not finite.
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
            continue
        try:
            evaluated = _score_sample(segmenter, drawn, protocol, metrics, options)
        except SegmenterError as error:
            reason = f"image '{drawn.sample.sample_id}': {error}"
            if not options.keep_going:
                raise SegmenterError(reason) from error
            yield Failure(drawn.sample.sample_id, reason)
        else:
            options = replace(options, halvings=evaluated.halvings)
            yield evaluated


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


@torch.inference_mode()
def _score_sample(
    segmenter: Segmenter[Any],
    drawn: DrawnSample,
    protocol: EvalProtocol,
    metrics: Sequence[Metric],
    options: LoopOptions,
) -> Evaluated:
    """Score an image, once more with half as many prompts at once as often as memory ends."""
    sample, started = drawn.sample, time.perf_counter()
    embedding = _encode(segmenter, sample)
    height, width = sample.image.shape[:2]
    most = min(options.prompts_at_once, MASK_BYTES // (height * width))
    while True:
        in_a_call = max(1, most >> options.halvings)
        predict = _Predictor(segmenter, embedding, protocol.selection, in_a_call)
        try:
            scored = _score_masks(predict, drawn, metrics, options)
            # scores are numbers here: no device lags behind
            return replace(scored, busy_s=time.perf_counter() - started)
        except (RuntimeError, MemoryError) as error:
            if not says_out_of_memory(error):
                raise
            if in_a_call == 1:
                raise SegmenterError(
                    f"{segmenter.info.label}: out of device memory with one prompt at once"
                ) from error
        release_memory()
        options = replace(options, halvings=options.halvings + 1)


def _encode(segmenter: Segmenter[E], sample: Sample) -> E:
    try:
        (embedding,) = segmenter.encode([sample.image])
    except (RuntimeError, MemoryError) as error:
        if not says_out_of_memory(error):
            raise
        height, width = sample.image.shape[:2]
        raise SegmenterError(
            f"{segmenter.info.label}: out of device memory in encoding its {width} x {height} "
            "pixels; a smaller variant or --dtype may fit"
        ) from error
    return embedding


def _score_masks(
    predict: "_Predictor", drawn: DrawnSample, metrics: Sequence[Metric], options: LoopOptions
) -> Evaluated:
    sample = drawn.sample
    keeper = None if options.keep_masks == "none" else MaskKeeper(sample, options.keep_masks)
    scores: list[Score] = []
    for draws, masks, target in predict.all_masks(drawn.draws):
        if keeper is not None:
            keeper.add(draws, masks, target)
        for metric in metrics:
            scores.extend(_scores(sample.sample_id, draws, metric, masks, target))
    predict.check_finite()
    return Evaluated(
        sample.sample_id,
        tuple(scores),
        sum(len(draws.prompts) for draws in drawn.draws),
        options.halvings,
        drawn.objects,
        None if keeper is None else keeper.kept(),
    )


class _Predictor:
    """The masks of one image's draws, in calls that mix instances and conditions."""

    def __init__(
        self, segmenter: Segmenter[E], embedding: E, selection: Selection, in_a_call: int
    ) -> None:
        self._segmenter: Segmenter[Any] = segmenter
        self._embedding = embedding
        self._selection = selection
        self._multimask = segmenter.info.multimask and selection != "single"
        self._in_a_call = in_a_call
        self._finite: list[Tensor] = []

    def check_finite(self) -> None:
        """Raise where an answer was not finite; once an image, as it waits for the device.

        Raises:
            SegmenterError: the quality of a mask is not a number, or not finite.
        """
        if not torch.stack(self._finite).all():
            raise SegmenterError(
                f"{self._segmenter.info.label}: an answer is not finite (NaN or infinite logits or "
                "quality)"
            )

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
                batch = prompts[start : start + self._in_a_call]
                start += len(batch)
                found = self._segmenter.predict(self._embedding, batch, multimask=self._multimask)
                self._finite.append(found.quality.isfinite().all())
                candidates.put(found)
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
