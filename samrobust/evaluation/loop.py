"""The evaluation loop: images and jobs in, scores out; nothing is stored or printed here.

A job is a segmenter with a protocol. All jobs on a data set share one pass over its images: each
image is decoded once, encoded once for all segmenters with the same encoder, and its prompts are
drawn once for all segmenters.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from samrobust.datasets.coco import encode_mask
from samrobust.datasets.folder import targets_of
from samrobust.errors import DatasetError, NoObjectError, ProtocolError, SegmenterError
from samrobust.evaluation.conversations import converse
from samrobust.evaluation.mask_selection import MaskSelector
from samrobust.evaluation.predictor import Predictor, Selected
from samrobust.evaluation.prompts import (
    DrawnSample,
    Draws,
    clipped_boxes,
    corrupt,
    detections_of,
    draw_sample,
    rater_rows,
)
from samrobust.evaluation.search import search_prompts
from samrobust.metrics import load_metric
from samrobust.metrics.overlap import DILATION_RATIO, packing_shared
from samrobust.runs.manifest import (
    Detected,
    DetectionRow,
    Kept,
    ObjectRow,
    QualityRow,
    RaterRow,
    Score,
    SearchRow,
    TargetRow,
)
from samrobust.seeding import combined_hash
from samrobust.segmenters.device import release_memory, says_out_of_memory
from samrobust.segmenters.frames import MASK_THRESHOLD
from samrobust.types import (
    Dataset,
    Detections,
    EvalProtocol,
    Image,
    ImageCondition,
    Keep,
    KnowsSamples,
    Metric,
    PromptBatch,
    Sample,
    Search,
    Segmenter,
)

T = TypeVar("T")

SCORE_CONSTANTS = {"boundary_dilation_ratio": DILATION_RATIO}
"""Constants of the metrics that scores depend on; stored in the manifest."""
MAX_MASK_BYTES = 2**27
"""Of the masks of one forward pass, so that very large images fit into memory."""
ALL_TRIALS = -1
"""Trial number of a score over all trials."""


@dataclass(frozen=True)
class Job:
    """A segmenter, a protocol, and the images that are still to be scored."""

    segmenter: Segmenter[Any]
    protocol: EvalProtocol
    sample_ids: Sequence[str]


@dataclass(frozen=True)
class Failure:
    """An image that cannot be evaluated, with the reason.

    Attributes:
        sample_id: the image.
        reason: one line.
        is_left_out: whether it has no object to score; it is then recorded and not an error.
    """

    sample_id: str
    reason: str
    is_left_out: bool = False


@dataclass(frozen=True)
class Evaluated:
    """All scores of one image in one job.

    Attributes:
        sample_id: the image.
        scores: of all its objects, conditions and trials.
        n_prompts: number of prompts.
        halvings: how often the batch size was halved, up to this image.
        objects: one row per instance.
        qualities: what the segmenter says of its masks, one row per prompt.
        kept: the masks to be stored, None for none.
        left_out: one line for each object that was left out, with the reason.
        raters: one row per recorded prompt.
        searches: one row per object and search for its worst prompt.
        detected: the masks of a detector's boxes, and the annotations; None for other prompts.
        busy_s: seconds of encoding, predicting and scoring.
    """

    sample_id: str
    scores: tuple[Score, ...]
    n_prompts: int
    halvings: int
    objects: tuple[ObjectRow, ...] = ()
    qualities: tuple[QualityRow, ...] = ()
    kept: Kept | None = None
    left_out: tuple[str, ...] = ()
    raters: tuple[RaterRow, ...] = ()
    searches: tuple[SearchRow, ...] = ()
    detected: Detected | None = None
    busy_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class LoopOptions:
    """Options that do not change scores, apart from rounding by `image_batch_size`.

    Attributes:
        batch_size: maximum number of prompts per forward pass.
        workers: processes that decode images and draw prompts ahead; 0 for none.
        keep_going: whether a failure is yielded instead of raised.
        keep_masks: which masks are yielded with the scores.
        halvings: how often `batch_size` is halved at the start; each job halves it once more
            whenever device memory runs out.
        image_batch_size: maximum number of images per forward pass of the encoder.
    """

    batch_size: int = 16
    workers: int = 0
    keep_going: bool = False
    keep_masks: Keep = "none"
    halvings: int = 0
    image_batch_size: int = 1


def check_can_run(segmenter: Segmenter[Any], protocol: EvalProtocol) -> None:
    """Check that a segmenter can run a protocol, and that the protocol has scores.

    Raises:
        SegmenterError: it does not accept all prompts, or gives no gradients that a search needs;
            the message names both.
        ProtocolError: all metrics need two trials, and every condition has one.
    """
    info = segmenter.info
    metrics = [load_metric(name) for name in protocol.metrics]
    max_trials = max(condition.trials for condition in protocol.conditions)
    if max_trials < 2 and all(metric.over_trials for metric in metrics):
        raise ProtocolError(
            f"protocol {protocol.name}: {', '.join(protocol.metrics)} needs two trials or more, "
            "every condition has one"
        )
    if protocol.selection == "oracle" and detections_of(protocol) is not None:
        raise ProtocolError(
            f"protocol {protocol.name}: boxes of a detector have no target to select by: allowed "
            "are single and best-quality"
        )
    for condition in protocol.conditions:
        missing = condition.gives - info.prompts
        if missing:
            raise SegmenterError(
                f"protocol {protocol.name}: condition '{condition.name}' gives "
                f"{' and '.join(sorted(missing))}, segmenter {info.label} accepts "
                f"{', '.join(sorted(info.prompts))}"
            )
        search = condition.degradation
        needs_gradients = isinstance(search, Search) and search.needs_gradients
        if needs_gradients and getattr(segmenter, "predict_with_gradients", None) is None:
            raise SegmenterError(
                f"protocol {protocol.name}: condition '{condition.name}' needs gradients, which "
                f"segmenter {info.label} does not give; allowed are the SAMs of this package and "
                "models with a method predict_with_gradients; without --gradient any is searched"
            )


def score_images(
    dataset: Dataset, jobs: Sequence[Job], options: LoopOptions
) -> Iterator[tuple[int, Evaluated | Failure]]:
    """Yield (index of the job, scores of one image), image by image in the data set's order.

    Masks are scored on the device that holds them.

    Raises:
        DatasetError: an image or mask cannot be read, unless `keep_going` is set.
        SegmenterError: a segmenter does not accept its protocol's prompts; or, unless `keep_going`
            is set, memory runs out with a single prompt or a prediction is not finite.
    """
    for job in jobs:
        check_can_run(job.segmenter, job.protocol)
    wanted = [frozenset(job.sample_ids) for job in jobs]
    sample_ids = [name for name in dataset.ids() if any(name in ids for ids in wanted)]
    jobs_of = {
        name: [index for index, ids in enumerate(wanted) if name in ids] for name in sample_ids
    }
    loader: DataLoader[DrawnSample | Failure] = DataLoader(
        _DrawnSamples(dataset, jobs, jobs_of),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=min(options.workers, len(sample_ids)),
        collate_fn=identity_collate,
        worker_init_fn=end_with_parent,
    )
    scorers = [_Scorer(job, options, dataset.info.key) for job in jobs]
    samples = iter(loader)
    while group := list(itertools.islice(samples, options.image_batch_size)):
        images = [loaded.sample.image for loaded in group if isinstance(loaded, DrawnSample)]
        embeddings = _Embeddings(images)
        for loaded in group:
            if isinstance(loaded, Failure):
                if not (options.keep_going or loaded.is_left_out):
                    raise DatasetError(loaded.reason)
                yield from ((index, loaded) for index in jobs_of[loaded.sample_id])
                continue
            indices = jobs_of[loaded.sample.sample_id]
            protocols = _distinct(jobs[index].protocol for index in indices)
            for index in indices:
                draws = loaded.draws[protocols.index(jobs[index].protocol)]
                yield index, scorers[index].score(loaded, draws, embeddings)
            embeddings.drop(loaded.sample.image)


def end_with_parent(_worker: int) -> None:
    """Make a loading process end when its parent is killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def identity_collate(loaded: T) -> T:
    """Return what a loading process made, without converting it to tensors."""
    return loaded


class _DrawnSamples:
    """The torch Dataset of the loader, which decodes an image and draws its prompts."""

    def __init__(
        self, dataset: Dataset, jobs: Sequence[Job], jobs_of: Mapping[str, Sequence[int]]
    ) -> None:
        self._dataset = dataset
        self._protocols = [job.protocol for job in jobs]
        self._jobs_of = list(jobs_of.items())

    def __len__(self) -> int:
        return len(self._jobs_of)

    def __getitem__(self, row: int) -> DrawnSample | Failure:
        sample_id, indices = self._jobs_of[row]
        protocols = _distinct(self._protocols[index] for index in indices)
        try:
            drawn = draw_sample(self._dataset[sample_id], self._dataset.info.key, protocols)
            annotated = targets_of(self._dataset)
            if annotated is not None and any(map(detections_of, protocols)):
                drawn = replace(drawn, targets=tuple(annotated.targets(sample_id)))
            return drawn
        except NoObjectError as error:
            return Failure(sample_id, str(error), is_left_out=True)
        except (DatasetError, ValueError) as error:  # the latter from a plug-in's broken sample
            return Failure(sample_id, str(error))


def _distinct(protocols: Iterator[EvalProtocol]) -> list[EvalProtocol]:
    """Return protocols without repetition, in their order; they cannot be hashed."""
    distinct: list[EvalProtocol] = []
    for protocol in protocols:
        if protocol not in distinct:
            distinct.append(protocol)
    return distinct


_Version = tuple[int, Hashable]
"""The id of an image, and which corruption of it; None for the image as it is stored."""


class _Embeddings:
    """The embeddings of a batch of images and of their corruptions, computed once per encoder."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = images
        self._by_encoder: dict[object, dict[_Version, Any]] = {}

    def get(
        self,
        segmenter: Segmenter[Any],
        image: Image,
        *,
        version: Hashable = None,
        make: Callable[[Image], Image] = lambda image: image,
    ) -> object:
        """Return the embedding of one of the images, or of a corrupted version of it.

        Args:
            segmenter: that will be given the embedding.
            image: one of the images, as stored.
            version: equal for versions with the same pixels; None for the image as stored.
            make: returns the version; called when it has not been encoded yet.

        Raises:
            SegmenterError: the encoder cannot encode it, or device memory runs out.
        """
        encoder = getattr(segmenter, "encoder_key", "") or id(segmenter)
        if encoder not in self._by_encoder:
            self._by_encoder[encoder] = self._encode_batch(segmenter)
        embeddings = self._by_encoder[encoder]
        key = id(image), version
        if key not in embeddings:
            embeddings[key] = _encode_one(segmenter, make(image))
        return embeddings[key]

    def drop(self, image: Image) -> None:
        """Forget the embeddings of an image and of all its versions."""
        for embeddings in self._by_encoder.values():
            for key in [key for key in embeddings if key[0] == id(image)]:
                del embeddings[key]

    def _encode_batch(self, segmenter: Segmenter[Any]) -> dict[_Version, Any]:
        """Return the embeddings of several images; none for one image or if the batch fails."""
        if len(self._images) < 2:
            return {}
        try:
            embeddings = segmenter.encode(self._images)
        except SegmenterError:
            return {}
        except (RuntimeError, MemoryError) as error:
            if not says_out_of_memory(error):
                raise
            release_memory()
            return {}
        return {
            (id(image), None): embedding
            for image, embedding in zip(self._images, embeddings, strict=True)
        }


def _encode_one(segmenter: Segmenter[Any], image: Image) -> object:
    try:
        (embedding,) = segmenter.encode([image])
    except (RuntimeError, MemoryError) as error:
        if not says_out_of_memory(error):
            raise
        height, width = image.shape[:2]
        raise SegmenterError(
            f"{segmenter.info.label}: out of device memory when encoding {width} x {height} "
            "pixels; a smaller variant or --dtype may fit"
        ) from error
    return embedding


class _Scorer:
    """Scores the images of one job, with smaller batches after device memory has run out."""

    def __init__(self, job: Job, options: LoopOptions, dataset_key: str) -> None:
        self._segmenter = job.segmenter
        self._selection = job.protocol.selection
        self._conditions = job.protocol.conditions
        self._takes_masks = "mask" in job.segmenter.info.prompts
        self._key = job.protocol.seed, dataset_key
        self._detections = detections_of(job.protocol)
        metrics = [load_metric(name) for name in job.protocol.metrics]
        thresholds = {MASK_THRESHOLD: None} | {metric.threshold: None for metric in metrics}
        if getattr(job.segmenter, "predict_at", None) is None:
            thresholds = {MASK_THRESHOLD: None}
        self._metrics = [metric for metric in metrics if metric.threshold in thresholds]
        self._thresholds = tuple(thresholds)
        self._options = options

    @torch.inference_mode()
    def score(
        self, drawn: DrawnSample, draws: Sequence[Draws], embeddings: _Embeddings
    ) -> Evaluated | Failure:
        """Return the scores of an image, or its failure if `keep_going` is set.

        Raises:
            SegmenterError: the image cannot be scored, and `keep_going` is not set.
        """
        sample_id = drawn.sample.sample_id
        try:
            started = time.perf_counter()
            scored = self._within_memory(drawn, draws, embeddings)
            # scores are Python numbers: the device has finished
            return replace(scored, busy_s=time.perf_counter() - started)
        except (DatasetError, SegmenterError) as error:
            reason = f"image '{sample_id}': {error}"
            if not self._options.keep_going:
                raise SegmenterError(reason) from error
            return Failure(sample_id, reason)

    def _within_memory(
        self, drawn: DrawnSample, draws: Sequence[Draws], embeddings: _Embeddings
    ) -> Evaluated:
        """Score an image; halve the batch and repeat whenever device memory runs out."""
        height, width = drawn.sample.image.shape[:2]
        n_pixels = height * width * len(self._thresholds)
        max_batch_size = min(self._options.batch_size, MAX_MASK_BYTES // n_pixels)
        while True:
            batch_size = max(1, max_batch_size >> self._options.halvings)
            try:
                return self._score_masks(drawn, draws, embeddings, batch_size)
            except (RuntimeError, MemoryError) as error:
                if not says_out_of_memory(error):
                    raise
                if batch_size == 1:
                    raise SegmenterError(
                        f"{self._segmenter.info.label}: out of device memory with a single prompt"
                    ) from error
            release_memory()
            self._options = replace(self._options, halvings=self._options.halvings + 1)

    def _score_masks(
        self,
        drawn: DrawnSample,
        draws: Sequence[Draws],
        embeddings: _Embeddings,
        batch_size: int,
    ) -> Evaluated:
        """Score an image: each version of it is encoded, then given all its prompts."""
        sample, keep = drawn.sample, self._options.keep_masks
        selector = None if keep == "none" else MaskSelector(sample, keep)
        scores = _Rows[Score]()
        qualities = _Rows[QualityRow]()
        searches: list[SearchRow] = []
        n_prompts, detected = 0, None
        for image, group in _by_image(draws, stored=self._detections is not None):
            predict = Predictor(
                self._segmenter,
                self._embed(sample, image, embeddings),
                self._selection,
                batch_size,
                void=sample.void,
                thresholds=self._thresholds,
            )
            for found in self._answers(predict, sample.sample_id, group, searches):
                n_prompts += len(found.quality) if found.draws.space is None else 0
                if selector is not None and image is None:  # it shows the photograph as stored
                    selector.add(found.draws, found.masks[MASK_THRESHOLD], found.target)
                with packing_shared():
                    for metric in self._metrics:
                        _add_scores(scores, sample.sample_id, found, metric)
                _add_qualities(qualities, sample.sample_id, found)
            if image is None and self._detections is not None:
                detected = _detected(predict, drawn, self._detections)
            predict.check_finite()
        return Evaluated(
            sample.sample_id,
            scores.fetched(),
            n_prompts
            + sum(row.n_asked for row in searches)
            + (0 if detected is None else len(detected.detections)),
            self._options.halvings,
            drawn.objects,
            qualities.fetched(),
            None if selector is None else selector.selected(),
            sample.left_out,
            tuple(row for draw in draws for row in rater_rows(sample.sample_id, draw)),
            tuple(searches),
            detected,
        )

    def _answers(
        self,
        predict: Predictor,
        sample_id: str,
        draws: Sequence[Draws],
        searches: list[SearchRow],
    ) -> Iterator[Selected]:
        """Yield the masks that are scored, those of conversations last; add rows of searches."""
        opening = [draw for draw in draws if draw.condition.turn is not None]
        searching = [draw for draw in draws if draw.space is not None]
        rest = [draw for draw in draws if draw.condition.turn is None and draw.space is None]
        yield from predict.all_masks(rest)
        for found in search_prompts(predict, sample_id, searching):
            searches.extend([] if found.row is None else [found.row])
            yield found.selected
        yield from converse(predict, opening, self._conditions, feeds=self._takes_masks)

    def _embed(
        self, sample: Sample, image: ImageCondition | None, embeddings: _Embeddings
    ) -> object:
        if isinstance(self._segmenter, KnowsSamples):
            return self._segmenter.encode_sample(sample)
        if image is None:
            return embeddings.get(self._segmenter, sample.image)
        seed, dataset_key = self._key
        return embeddings.get(
            self._segmenter,
            sample.image,
            version=(seed, image.kind, repr(image.corruption)),
            make=lambda stored: corrupt(
                stored, image, seed=seed, dataset_key=dataset_key, sample_id=sample.sample_id
            ),
        )


def _by_image(
    draws: Sequence[Draws], *, stored: bool
) -> list[tuple[ImageCondition | None, list[Draws]]]:
    """Return draws by how the image is corrupted; if `stored`, first those of the stored image."""
    groups: dict[str, tuple[ImageCondition | None, list[Draws]]] = {}
    if stored:  # wanted even without draws
        groups[""] = (None, [])
    for draw in draws:
        image = draw.condition.image
        groups.setdefault("" if image is None else image.name, (image, []))[1].append(draw)
    return list(groups.values())


class _Rows(Generic[T]):
    """Rows whose values are still on the device, for which it is waited once per image."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Callable[[list[float]], Iterable[T]]]] = []

    def add(self, values: Tensor, make: Callable[[list[float]], Iterable[T]]) -> None:
        """Add the rows that `make` returns of values."""
        self._pending.append((values, make))

    def fetched(self) -> tuple[T, ...]:
        """Return the rows, in the order in which they were added."""
        if not self._pending:
            return ()
        device = self._pending[0][0].device
        parts = [values.to(device, torch.float64).flatten() for values, _ in self._pending]
        values = iter(torch.cat(parts).tolist())
        rows: list[T] = []
        for part, (_, make) in zip(parts, self._pending, strict=True):
            rows.extend(make(list(itertools.islice(values, len(part)))))
        return tuple(rows)


def _add_scores(rows: _Rows[Score], sample_id: str, found: Selected, metric: Metric) -> None:
    draws, masks = found.draws, found.masks[metric.threshold]
    if metric.over_trials and len(masks) < 2:
        return
    scored = torch.as_tensor(metric.fn(masks, found.target))  # NumPy also does
    wanted = (1,) if metric.over_trials else (len(masks),)
    if tuple(scored.shape) != wanted:
        shape = tuple(scored.shape)
        raise ProtocolError(f"metric '{metric.name}' gave values of shape {shape}, not {wanted}")
    trials = [ALL_TRIALS] if metric.over_trials else range(len(masks))
    hashes = [combined_hash(draws.hashes)] if metric.over_trials else draws.hashes
    where = sample_id, draws.instance.instance_id, draws.condition.name

    def made(values: list[float]) -> list[Score]:
        return [
            Score(*where, trial, metric.name, value, prompts)
            for trial, value, prompts in zip(trials, values, hashes, strict=True)
        ]

    rows.add(scored, made)


def _add_qualities(rows: _Rows[QualityRow], sample_id: str, found: Selected) -> None:
    where = sample_id, found.draws.instance.instance_id, found.draws.condition.name
    columns = [found.quality] if found.gap is None else [found.quality, found.gap]
    n = len(found.quality)

    def made(values: list[float]) -> list[QualityRow]:
        gaps: Sequence[float | None] = values[n:] or [None] * n
        return [
            QualityRow(*where, trial, quality, gap)
            for trial, (quality, gap) in enumerate(zip(values[:n], gaps, strict=True))
        ]

    rows.add(torch.cat([column.double() for column in columns]), made)


def _detected(predict: Predictor, drawn: DrawnSample, detections: Detections) -> Detected:
    """Return the mask of every box of a detector in an image, and the image's annotations."""
    sample_id = drawn.sample.sample_id
    targets = [
        TargetRow(
            sample_id,
            target.instance_id,
            target.category_id,
            target.area,
            target.is_crowd,
            target.counts,
            *target.size_hw,
            target.frequency,
            target.negatives,
            target.not_exhaustive,
        )
        for target in drawn.targets
    ]
    found = detections.detections(sample_id)
    if not found:
        return Detected([], targets)
    n = len(found)
    prompts = PromptBatch(
        clipped_boxes(detections, drawn.sample),
        np.zeros((n, 0, 2), np.float32),
        np.zeros((n, 0), np.int32),
    )
    rows = [
        DetectionRow(
            sample_id, number, one.category_id, one.score, quality, one.bbox, encode_mask(mask)
        )
        for number, (one, (mask, quality)) in enumerate(
            zip(found, predict.each_mask(prompts), strict=True)
        )
    ]
    return Detected(rows, targets)
