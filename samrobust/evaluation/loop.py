"""The evaluation loop: drawn images in, scores out; it knows no disk and no terminal."""

import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from samrobust.errors import DatasetError, ProtocolError, SegmenterError
from samrobust.evaluation.mask_selection import MaskKeeper
from samrobust.evaluation.predictor import Predictor
from samrobust.evaluation.prompts import DrawnSample, Draws, draw_sample
from samrobust.metrics import METRICS
from samrobust.metrics.overlap import DILATION_RATIO
from samrobust.runs.manifest import Keep, Kept, ObjectRow, Score
from samrobust.seeding import combined_hash
from samrobust.segmenters.device import release_memory, says_out_of_memory
from samrobust.types import Dataset, EvalProtocol, Metric, Sample, Segmenter, SegmenterInfo

T = TypeVar("T")


def end_with_parent(_worker: int) -> None:
    """Let a loading process end when its parent is killed, instead of waiting for it for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def identity_collate(drawn: T) -> T:
    """Return what a loading process made, without making tensors of it."""
    return drawn


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
    """How to run; nothing here changes a score, but for rounding by `images_at_once`.

    Attributes:
        prompts_at_once: prompts in one call of the segmenter, at most.
        images_at_once: images in one call of the encoder, at most.
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
    images_at_once: int = 1


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
        collate_fn=identity_collate,
        worker_init_fn=end_with_parent,
    )
    for drawn, encoded in _encoded(segmenter, loader, options.images_at_once):
        if isinstance(drawn, Failure):
            if not options.keep_going:
                raise DatasetError(drawn.reason)
            yield drawn
            continue
        try:
            evaluated = _score_sample(segmenter, drawn, encoded, protocol, metrics, options)
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


@dataclass(frozen=True)
class _Encoded:
    """An embedding, None where the image is to be encoded alone, and the seconds that it took."""

    embedding: Any = None
    seconds: float = 0.0


def _encoded(
    segmenter: Segmenter[Any], loader: Iterable[DrawnSample | Failure], at_once: int
) -> Iterator[tuple[DrawnSample | Failure, _Encoded]]:
    """Yield what a loader gives, in its order, with embeddings of images encoded together."""
    waiting = iter(loader)
    while group := list(itertools.islice(waiting, at_once)):
        drawn = [each for each in group if isinstance(each, DrawnSample)]
        together = iter(_encode_together(segmenter, [each.sample for each in drawn]))
        for each in group:
            yield each, next(together) if isinstance(each, DrawnSample) else _Encoded()


@torch.inference_mode()
def _encode_together(segmenter: Segmenter[Any], samples: Sequence[Sample]) -> list[_Encoded]:
    """Return an embedding for each of some images; none where they are to be encoded alone.

    That is where there is one, and where what hinders them is to be found out one by one.
    """
    if len(samples) > 1:
        started = time.perf_counter()
        try:
            embeddings = segmenter.encode([sample.image for sample in samples])
        except SegmenterError:
            pass
        except (RuntimeError, MemoryError) as error:
            if not says_out_of_memory(error):
                raise
            release_memory()
        else:
            seconds = (time.perf_counter() - started) / len(samples)
            return [_Encoded(embedding, seconds) for embedding in embeddings]
    return [_Encoded() for _ in samples]


@torch.inference_mode()
def _score_sample(
    segmenter: Segmenter[Any],
    drawn: DrawnSample,
    encoded: _Encoded,
    protocol: EvalProtocol,
    metrics: Sequence[Metric],
    options: LoopOptions,
) -> Evaluated:
    """Score an image, once more with half as many prompts at once as often as memory ends."""
    sample, started = drawn.sample, time.perf_counter() - encoded.seconds
    alone = encoded.embedding is None
    embedding = _encode(segmenter, sample) if alone else encoded.embedding
    height, width = sample.image.shape[:2]
    most = min(options.prompts_at_once, MASK_BYTES // (height * width))
    while True:
        in_a_call = max(1, most >> options.halvings)
        predict = Predictor(segmenter, embedding, protocol.selection, in_a_call)
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
    predict: Predictor, drawn: DrawnSample, metrics: Sequence[Metric], options: LoopOptions
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
