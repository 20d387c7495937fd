"""The evaluation loop: images and jobs in, scores out; it knows no disk and no terminal.

A job is a segmenter under a protocol. All jobs on a data set go over its images together: each
image is decoded once, encoded once for all segmenters that share an encoder, and its prompts are
drawn once for all segmenters.
"""

import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from samrobust.errors import DatasetError, NoObjectError, ProtocolError, SegmenterError
from samrobust.evaluation.mask_selection import MaskKeeper
from samrobust.evaluation.predictor import Predictor
from samrobust.evaluation.prompts import DrawnSample, Draws, draw_sample
from samrobust.metrics import METRICS
from samrobust.metrics.overlap import DILATION_RATIO
from samrobust.runs.manifest import Kept, ObjectRow, Score
from samrobust.seeding import combined_hash
from samrobust.segmenters.device import release_memory, says_out_of_memory
from samrobust.types import Dataset, EvalProtocol, Image, Keep, Metric, Segmenter, SegmenterInfo

T = TypeVar("T")

SCORE_CONSTANTS = {"boundary_dilation_ratio": DILATION_RATIO}
"""What every score depends on besides protocol, data and segmenter; stands in the manifest."""
MASK_BYTES = 2**27
"""Bound on the masks of one call of a segmenter, so that huge photographs fit into memory."""
ALL_TRIALS = -1
"""The trial of a score over all trials."""


@dataclass(frozen=True)
class Job:
    """One segmenter under one protocol, and the images that are still to be scored."""

    segmenter: Segmenter[Any]
    protocol: EvalProtocol
    sample_ids: Sequence[str]


@dataclass(frozen=True)
class Failure:
    """An image that cannot be evaluated, and why.

    Attributes:
        sample_id: the image.
        reason: in one line.
        is_left_out: whether it has nothing to score: it is recorded, and no error.
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
        n_prompts: that were predicted.
        halvings: that of the options, or more where device memory ran out on this image.
        objects: one row per instance.
        kept: the masks to be stored, None for none.
        left_out: why objects of the image were left out, one line each.
        busy_s: seconds in which the image was encoded, predicted and scored.
    """

    sample_id: str
    scores: tuple[Score, ...]
    n_prompts: int
    halvings: int
    objects: tuple[ObjectRow, ...] = ()
    kept: Kept | None = None
    left_out: tuple[str, ...] = ()
    busy_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class LoopOptions:
    """How to run; nothing here changes a score, but for rounding by `image_batch_size`.

    Attributes:
        batch_size: prompts in one call of a segmenter, at most.
        workers: processes that decode images and draw prompts ahead; 0 for none.
        keep_going: yield a failure instead of raising it.
        keep_masks: which masks are yielded with the scores.
        halvings: how often `batch_size` is halved; once more wherever device memory runs out, for
            all that the same segmenter is asked from then on.
        image_batch_size: images in one call of an encoder, at most.
    """

    batch_size: int = 16
    workers: int = 0
    keep_going: bool = False
    keep_masks: Keep = "none"
    halvings: int = 0
    image_batch_size: int = 1


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


def score_images(
    dataset: Dataset, jobs: Sequence[Job], options: LoopOptions
) -> Iterator[tuple[int, Evaluated | Failure]]:
    """Yield (place of the job, scores of one image), image by image in the data set's order.

    Masks are scored on the device that holds them.

    Raises:
        DatasetError: an image or mask cannot be read, unless told to keep going.
        SegmenterError: a segmenter does not take its protocol's prompts. Unless told to keep
            going: its memory runs out with a single prompt, or its prediction is not finite.
    """
    for job in jobs:
        check_can_run(job.segmenter.info, job.protocol)
    wanted = [frozenset(job.sample_ids) for job in jobs]
    sample_ids = [name for name in dataset.ids() if any(name in ids for ids in wanted)]
    of_image = {
        name: [place for place, ids in enumerate(wanted) if name in ids] for name in sample_ids
    }
    loader: DataLoader[DrawnSample | Failure] = DataLoader(
        _Drawing(dataset, jobs, of_image),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=min(options.workers, len(sample_ids)),
        collate_fn=identity_collate,
        worker_init_fn=end_with_parent,
    )
    scorers = [_Scorer(job, options) for job in jobs]
    images = iter(loader)
    while group := list(itertools.islice(images, options.image_batch_size)):
        drawn = [each for each in group if isinstance(each, DrawnSample)]
        embeddings = _Embeddings([each.sample.image for each in drawn])
        for each in group:
            if isinstance(each, Failure):
                if not (options.keep_going or each.is_left_out):
                    raise DatasetError(each.reason)
                yield from ((place, each) for place in of_image[each.sample_id])
                continue
            places = of_image[each.sample.sample_id]
            protocols = _distinct(jobs[place].protocol for place in places)
            for place in places:
                draws = each.draws[protocols.index(jobs[place].protocol)]
                yield place, scorers[place].score(each, draws, embeddings)
            embeddings.drop(each.sample.image)


def end_with_parent(_worker: int) -> None:
    """Let a loading process end when its parent is killed, instead of waiting for it for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def identity_collate(loaded: T) -> T:
    """Return what a loading process made, without making tensors of it."""
    return loaded


class _Drawing:
    """What the loader's processes run: decode one image and draw its prompts."""

    def __init__(
        self, dataset: Dataset, jobs: Sequence[Job], of_image: Mapping[str, Sequence[int]]
    ) -> None:
        self._dataset = dataset
        self._protocols = [job.protocol for job in jobs]
        self._of_image = list(of_image.items())

    def __len__(self) -> int:
        return len(self._of_image)

    def __getitem__(self, index: int) -> DrawnSample | Failure:
        sample_id, places = self._of_image[index]
        protocols = _distinct(self._protocols[place] for place in places)
        try:
            return draw_sample(self._dataset[sample_id], self._dataset.info.key, protocols)
        except NoObjectError as error:
            return Failure(sample_id, str(error), is_left_out=True)
        except (DatasetError, ValueError) as error:  # the latter from a plug-in's broken sample
            return Failure(sample_id, str(error))


def _distinct(protocols: Iterator[EvalProtocol]) -> list[EvalProtocol]:
    """Return protocols in the order of their jobs, each once."""
    found: list[EvalProtocol] = []
    for protocol in protocols:
        if protocol not in found:
            found.append(protocol)
    return found


class _Embeddings:
    """The embeddings of some images, made once for all segmenters that share an encoder."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = images
        self._made: dict[object, dict[int, Any]] = {}

    def get(self, segmenter: Segmenter[Any], image: Image) -> object:
        """Return the embedding of one of the images.

        Raises:
            SegmenterError: the encoder cannot encode it, or device memory runs out.
        """
        encoder = getattr(segmenter, "encoder_key", "") or id(segmenter)
        if encoder not in self._made:
            self._made[encoder] = self._encode_together(segmenter)
        made = self._made[encoder]
        if id(image) not in made:
            made[id(image)] = _encode_alone(segmenter, image)
        return made[id(image)]

    def drop(self, image: Image) -> None:
        """Forget the embeddings of an image."""
        for made in self._made.values():
            made.pop(id(image), None)

    def _encode_together(self, segmenter: Segmenter[Any]) -> dict[int, Any]:
        """Return the embeddings of all images where there are several and one call can do it."""
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
        return dict(zip(map(id, self._images), embeddings, strict=True))


def _encode_alone(segmenter: Segmenter[Any], image: Image) -> object:
    try:
        (embedding,) = segmenter.encode([image])
    except (RuntimeError, MemoryError) as error:
        if not says_out_of_memory(error):
            raise
        height, width = image.shape[:2]
        raise SegmenterError(
            f"{segmenter.info.label}: out of device memory in encoding its {width} x {height} "
            "pixels; a smaller variant or --dtype may fit"
        ) from error
    return embedding


class _Scorer:
    """Scores the images of one job, with smaller batches once device memory has run out."""

    def __init__(self, job: Job, options: LoopOptions) -> None:
        self._segmenter = job.segmenter
        self._selection = job.protocol.selection
        self._metrics = [METRICS.load(name) for name in job.protocol.metrics]
        self._options = options

    @torch.inference_mode()
    def score(
        self, drawn: DrawnSample, draws: Sequence[Draws], embeddings: _Embeddings
    ) -> Evaluated | Failure:
        """Return the scores of an image, or why there are none where that is to be recorded.

        Raises:
            SegmenterError: there are none, and it is not to be recorded.
        """
        sample_id = drawn.sample.sample_id
        try:
            started = time.perf_counter()
            embedding = embeddings.get(self._segmenter, drawn.sample.image)
            scored = self._within_memory(drawn, draws, embedding)
            # scores are numbers here: no device lags behind
            return replace(scored, busy_s=time.perf_counter() - started)
        except SegmenterError as error:
            reason = f"image '{sample_id}': {error}"
            if not self._options.keep_going:
                raise SegmenterError(reason) from error
            return Failure(sample_id, reason)

    def _within_memory(
        self, drawn: DrawnSample, draws: Sequence[Draws], embedding: object
    ) -> Evaluated:
        """Score an image, once more with half the batch as often as device memory runs out."""
        height, width = drawn.sample.image.shape[:2]
        most = min(self._options.batch_size, MASK_BYTES // (height * width))
        while True:
            batch_size = max(1, most >> self._options.halvings)
            predict = Predictor(
                self._segmenter, embedding, self._selection, batch_size, void=drawn.sample.void
            )
            try:
                return self._score_masks(predict, drawn, draws)
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
        self, predict: Predictor, drawn: DrawnSample, draws: Sequence[Draws]
    ) -> Evaluated:
        sample, keep = drawn.sample, self._options.keep_masks
        keeper = None if keep == "none" else MaskKeeper(sample, keep)
        scores: list[Score] = []
        for each, masks, target in predict.all_masks(draws):
            if keeper is not None:
                keeper.add(each, masks, target)
            for metric in self._metrics:
                scores.extend(_scores(sample.sample_id, each, metric, masks, target))
        predict.check_finite()
        return Evaluated(
            sample.sample_id,
            tuple(scores),
            sum(len(each.prompts) for each in draws),
            self._options.halvings,
            drawn.objects,
            None if keeper is None else keeper.kept(),
            sample.left_out,
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
