"""The prompts of an image for all conditions and trials, with NumPy, in loading processes.

They are drawn by degradations, or looked up among those that were recorded.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from samrobust.degradations.human import box_loss
from samrobust.errors import DatasetError, NoObjectError
from samrobust.geometry import box_iou, mask_to_box, perimeter
from samrobust.prompt_files import written_row
from samrobust.protocol import check_drawn
from samrobust.runs.manifest import ObjectRow, RaterRow
from samrobust.seeding import combined_hash, keyed_generator, prompt_hash
from samrobust.types import (
    Condition,
    Dataset,
    Detections,
    EvalProtocol,
    Floats,
    Image,
    ImageCondition,
    Instance,
    Prompt,
    PromptBatch,
    RecordedPrompt,
    Recording,
    Sample,
    Search,
    SearchSpace,
    Target,
    image_key,
)

MOST_ASPECT = 1.02
"""By which the ratio of sides of an image as it was shown may differ from that of its file."""
_ENDS = np.array([0, 0, 1, 1])
"""From the last pixels of a box to the end of their area."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draws:
    """All trials of one condition for one instance.

    Attributes:
        instance: the object.
        condition: the condition.
        prompts: T prompts.
        hashes: T prompt hashes.
        raters: who gave each of recorded prompts, "" if unknown; () for drawn ones.
        space: where a search goes on after T prompts, which then have one hash together, the same
            for every segmenter; None without a search.
        key: seed, data set, sample and instance, for what is drawn later; () for recorded prompts.
    """

    instance: Instance
    condition: Condition
    prompts: PromptBatch
    hashes: tuple[str, ...]
    raters: tuple[str, ...] = ()
    space: SearchSpace | None = None
    key: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class DrawnSample:
    """An image with all prompts of one or several protocols.

    Attributes:
        sample: the image.
        draws: of each protocol, in the order of the protocols.
        objects: one row per instance.
        targets: the annotations of the image, where a protocol has boxes of a detector.
    """

    sample: Sample
    draws: tuple[tuple[Draws, ...], ...]
    objects: tuple[ObjectRow, ...]
    targets: tuple[Target, ...] = ()


def draw_sample(sample: Sample, dataset_key: str, protocols: Sequence[EvalProtocol]) -> DrawnSample:
    """Return an image with all prompts of several protocols.

    Recorded prompts that do not fit the image are named in its `left_out`.

    Raises:
        DatasetError: a condition cannot be drawn from an instance.
        NoObjectError: no object has a recorded prompt that fits.
    """
    misfits = [reason for protocol in protocols for reason in misplaced(sample, protocol)]
    draws = tuple(draw_prompts(sample, dataset_key, protocol) for protocol in protocols)
    if any(map(detections_of, protocols)):
        if not any(draws):
            misfits.append(f"image '{sample.sample_id}': no detection matches an object")
    elif not any(draws):
        raise NoObjectError(misfits[0])
    objects = tuple(_object_rows(sample))
    if misfits:
        sample = replace(sample, left_out=(*sample.left_out, *misfits))
    return DrawnSample(sample, draws, objects)


def draw_prompts(sample: Sample, dataset_key: str, protocol: EvalProtocol) -> tuple[Draws, ...]:
    """Return all prompts of a protocol for an image, instance by instance.

    The random generator of each prompt has the key (seed, data set, sample, instance, family,
    trial): conditions that differ in their images alone have the same prompts, drawn once. Where
    prompts were recorded, only objects that have some are prompted. Of a conversation it is the
    first prompt: later ones depend on a segmenter's answers.

    Raises:
        DatasetError: a condition cannot be drawn from an instance.
    """
    key = protocol.seed, dataset_key
    opening = [each for each in protocol.conditions if each.turn is None or each.turn.is_first]
    draws: list[Draws] = []
    for instance in sample.instances:
        drawn: dict[tuple[int, int], Draws | None] = {}
        for condition in opening:
            prompts = id(condition.degradation), condition.trials
            if prompts not in drawn:
                drawn[prompts] = _draw(sample, instance, condition, key)
            found = drawn[prompts]
            if found is not None:
                draws.append(replace(found, condition=condition))
    if not is_recorded(protocol):
        return tuple(draws)
    prompted = {draw.instance.instance_id for draw in draws if draw.raters}
    return tuple(draw for draw in draws if draw.instance.instance_id in prompted)


def corrupt(
    image: Image, condition: ImageCondition, *, seed: int, dataset_key: str, sample_id: str
) -> Image:
    """Return the image that a segmenter is given under a condition.

    The random generator has the key (seed, data set, sample, "image", family).

    Raises:
        DatasetError: a corruption of a plug-in returns something else than such an image.
    """
    rng = keyed_generator(seed, dataset_key, sample_id, "image", condition.corruption.family)
    made = condition.corruption(image.copy(), rng)
    if made.shape != image.shape or made.dtype != np.uint8:
        raise DatasetError(
            f"sample '{sample_id}', image '{condition.name}': the corruption must return uint8 of "
            f"shape {image.shape}, got {made.dtype} of shape {made.shape}"
        )
    return made


def is_recorded(protocol: EvalProtocol) -> bool:
    """Return whether some prompts of a protocol were recorded."""
    return any(isinstance(condition.degradation, Recording) for condition in protocol.conditions)


def detections_of(protocol: EvalProtocol) -> Detections | None:
    """Return the boxes of a detector that are the prompts of a protocol, None for other prompts."""
    found = [condition.degradation for condition in protocol.conditions]
    return next((each for each in found if isinstance(each, Detections)), None)


def clipped_boxes(detections: Detections, sample: Sample) -> npt.NDArray[np.float32]:
    """Return (N, 4) the detected boxes of an image, clipped to it, in the order of the file."""
    found = detections.detections(sample.sample_id)
    boxes = np.array([each.prompt.box for each in found], np.float32).reshape(-1, 4)
    height, width = sample.image.shape[:2]
    return np.clip(boxes, 0, np.array([width, height] * 2, np.float32) - 1)


def _recorded(recording: Recording, sample: Sample) -> Sequence[RecordedPrompt]:
    """Return the recorded prompts of an image; of detections those that match an object.

    As in COCO's evaluation the detection of the highest score chooses first: the object of its
    category whose tight box has the highest IoU with its own, of those that no other chose.
    """
    if not isinstance(recording, Detections):
        return recording.of(sample.sample_id)
    found = recording.detections(sample.sample_id)
    boxes = clipped_boxes(recording, sample)
    left = {one.instance_id: (one.category, mask_to_box(one.mask)) for one in sample.instances}
    matched = []
    for place in sorted(range(len(found)), key=lambda place: -found[place].score):
        category = recording.categories.get(found[place].category_id)
        overlaps = {
            name: box_iou(boxes[place].astype(np.float64), tight)
            for name, (its_category, tight) in left.items()
            if its_category == category
        }
        best = max(overlaps, key=overlaps.__getitem__, default="")
        if overlaps.get(best, 0.0) >= recording.min_box_iou:
            del left[best]
            prompt = Prompt(boxes[place])
            matched.append(RecordedPrompt(best, prompt, place=found[place].place))
    return matched


def prompted_images(protocol: EvalProtocol, sample_ids: Sequence[str]) -> list[str]:
    """Return the images that a protocol has prompts for: all of them, unless they were recorded.

    Prompts of other images are named in the log.

    Raises:
        DatasetError: there are recorded prompts, but for none of the images.
    """
    if not is_recorded(protocol) or detections_of(protocol):  # a miss counts in the precision
        return list(sample_ids)
    recordings = [
        condition.degradation
        for condition in protocol.conditions
        if isinstance(condition.degradation, Recording)
    ]
    prompted = [name for name in sample_ids if any(each.of(name) for each in recordings)]
    others = {key for each in recordings for key in each.prompts} - set(map(image_key, prompted))
    file = recordings[0].file
    if not prompted:
        raise DatasetError(
            f"{file}: no prompt is of an image of the data set; the file has '{min(others)}', the "
            f"data set '{next(iter(sample_ids), '')}'"
        )
    if others:
        _LOG.warning(
            "%s: images that the data set does not have are left out: %d, such as '%s'",
            file,
            len(others),
            min(others),
        )
    return prompted


def misplaced(sample: Sample, protocol: EvalProtocol) -> list[str]:
    """Return one line for each recorded prompt of an image without an object, or outside of it."""
    reasons = []
    for condition in protocol.conditions:
        if isinstance(condition.degradation, Recording):
            for recorded in _recorded(condition.degradation, sample):
                try:
                    placed(recorded, sample)
                except DatasetError as error:
                    reasons.append(f"{condition.degradation.file}, {recorded.place}: {error}")
    return reasons


def placed(recorded: RecordedPrompt, sample: Sample) -> tuple[Instance, Prompt]:
    """Return the object of a recorded prompt, and the prompt in pixels of its image.

    A box that leaves the image by at most a pixel, as where its end is not its last pixel, is
    clipped.

    Raises:
        DatasetError: there is no such object, or the prompt is outside of the image.
    """
    where = f"image '{sample.sample_id}'"
    instances = {instance.instance_id: instance for instance in sample.instances}
    if not recorded.instance_id and len(instances) > 1:
        raise DatasetError(f"no instance is named, and {where} has {len(instances)}")
    instance_id = recorded.instance_id or next(iter(instances))
    if instance_id not in instances:
        raise DatasetError(
            f"{where} has no object '{instance_id}'; it has {', '.join(sorted(instances))}"
        )
    height, width = sample.image.shape[:2]
    last = np.array([width, height]) - 1.0
    by = _enlargement(recorded, width, height)
    box, points = recorded.prompt.box, recorded.prompt.points.astype(np.float64)
    points = points if by is None else (points + 0.5) * by - 0.5
    if ((points < 0) | (points >= last + 1)).any():
        raise DatasetError(f"a point is outside of {where} of {width}x{height}: {points.tolist()}")
    if box is not None:
        corners: Floats = box.astype(np.float64)
        if by is not None:
            corners = (corners + _ENDS) * np.tile(by, 2) - _ENDS
        if (corners < -1).any() or (corners > np.tile(last, 2) + 1).any():
            raise DatasetError(f"the box is outside of {where} of {width}x{height}: {box.tolist()}")
        box = np.clip(corners, 0, np.tile(last, 2)).astype(np.float32)
    prompt = Prompt(box, points.astype(np.float32), recorded.prompt.labels)
    return instances[instance_id], prompt


def _enlargement(recorded: RecordedPrompt, width: int, height: int) -> Floats | None:
    """Return (2,) the image's sides over those of the image as it was shown; None for equal ones.

    Raises:
        DatasetError: another image was shown.
    """
    size_wh = recorded.size_wh
    if size_wh is None or size_wh == (width, height):
        return None
    by = np.array([width, height]) / np.array(size_wh, np.float64)
    if not 1 / MOST_ASPECT < by[0] / by[1] < MOST_ASPECT:
        shown_wh = "x".join(map(str, recorded.size_wh or ()))
        raise DatasetError(
            f"the prompt is of an image of {shown_wh}, the image is {width}x{height}"
        )
    return by


def _draw(
    sample: Sample, instance: Instance, condition: Condition, key: tuple[int, str]
) -> Draws | None:
    """Return the prompts of a condition for an instance; None where none was recorded."""
    degradation = condition.degradation
    if isinstance(degradation, Recording):
        return _look_up(sample, instance, condition, degradation)
    where = (*key, sample.sample_id, instance.instance_id)
    try:
        if isinstance(degradation, Search):
            space = degradation.start(instance.mask, keyed_generator(*where, 0))
            hashes = tuple(map(prompt_hash, space.starts.split()))
            together = (combined_hash(hashes),)
            return Draws(instance, condition, space.starts, together, space=space)
        prompts = [
            degradation(instance.mask, keyed_generator(*where, degradation.family, trial))
            for trial in range(condition.trials)
        ]
    except (DatasetError, ValueError) as error:
        raise DatasetError(
            f"sample '{sample.sample_id}', instance '{instance.instance_id}', "
            f"condition '{condition.name}': {error}"
        ) from error
    hashes = tuple(prompt_hash(prompt) for prompt in prompts)
    return Draws(instance, condition, PromptBatch.stack(prompts), hashes, key=where)


def _look_up(
    sample: Sample, instance: Instance, condition: Condition, recording: Recording
) -> Draws | None:
    prompts, raters = [], []
    for recorded in _recorded(recording, sample):
        try:
            its_instance, prompt = placed(recorded, sample)
        except DatasetError:
            continue  # `misplaced` names it
        if its_instance is instance:
            prompts.append(prompt)
            raters.append(recorded.rater)
    if not prompts:
        return None
    hashes = tuple(prompt_hash(prompt) for prompt in prompts)
    return Draws(instance, condition, PromptBatch.stack(prompts), hashes, tuple(raters))


def drawn_rows(
    dataset: Dataset, protocol: EvalProtocol, sample_ids: Iterable[str]
) -> Iterator[dict[str, Any]]:
    """Yield the prompts of a protocol as rows of a file, in the order in which they are scored.

    Images without an object to prompt are passed over.

    Raises:
        DatasetError: an image or mask cannot be read, or a condition cannot be drawn.
        ProtocolError: as `check_drawn`.
    """
    check_drawn(protocol)
    for sample_id in sample_ids:
        try:
            sample = dataset[sample_id]
        except NoObjectError:
            continue
        height, width = sample.image.shape[:2]
        for draws in draw_prompts(sample, dataset.info.key, protocol):
            raters = draws.raters or ("",) * len(draws.prompts)
            for trial, (prompt, rater) in enumerate(
                zip(draws.prompts.split(), raters, strict=True)
            ):
                yield written_row(
                    prompt,
                    image=sample_id,
                    instance=draws.instance.instance_id,
                    condition=draws.condition.name,
                    trial=trial,
                    rater=rater,
                    width=width,
                    height=height,
                )


def recorded_losses(dataset: Dataset, protocol: EvalProtocol) -> list[RaterRow]:
    """Return the recorded boxes of a data set, and how far each is from the tight one.

    Prompts that do not fit their image are named in the log.

    Raises:
        DatasetError: an image or mask cannot be read, or no prompt is of the data set.
    """
    rows: list[RaterRow] = []
    for sample_id in prompted_images(protocol, dataset.ids()):
        try:
            sample = dataset[sample_id]
        except NoObjectError:
            continue
        for reason in misplaced(sample, protocol):
            _LOG.warning("left out: %s", reason)
        for draws in draw_prompts(sample, dataset.info.key, protocol):
            rows += [row for row in rater_rows(sample_id, draws) if row.loss is not None]
    return rows


def rater_rows(sample_id: str, draws: Draws) -> list[RaterRow]:
    """Return who gave each of recorded prompts, and how far its box is from the tight one."""
    tight = mask_to_box(draws.instance.mask)
    boxes = [None] * len(draws.raters) if draws.prompts.boxes is None else draws.prompts.boxes
    return [
        RaterRow(
            sample_id,
            draws.instance.instance_id,
            draws.condition.name,
            trial,
            rater,
            None if box is None else box_loss(box, tight),
        )
        for trial, (rater, box) in enumerate(zip(draws.raters, boxes, strict=False))
    ]


def _object_rows(sample: Sample) -> Iterator[ObjectRow]:
    """Yield what each object of an image is; of the others, those that the data set gives count."""
    boxes = np.stack([mask_to_box(instance.mask) for instance in sample.instances])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for instance, box in zip(sample.instances, boxes, strict=True):
        inside = ((centres >= box[:2]) & (centres <= box[2:])).all(axis=1)
        x0, y0, x1, y1 = box.astype(int)
        cropped = instance.mask[y0 : y1 + 1, x0 : x1 + 1]
        yield ObjectRow(
            sample.sample_id,
            instance.instance_id,
            instance.category,
            area=int(np.count_nonzero(cropped)),
            perimeter=perimeter(cropped),
            supercategory=instance.supercategory,
            others=int(inside.sum()) - 1,
            image_side=max(instance.mask.shape),
        )
