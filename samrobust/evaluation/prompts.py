"""Draw the prompts of an image for all conditions and trials, with NumPy, in loading processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from samrobust.errors import DatasetError
from samrobust.geometry import mask_to_box, perimeter
from samrobust.runs.manifest import ObjectRow
from samrobust.seeding import keyed_generator, prompt_hash
from samrobust.types import Condition, EvalProtocol, Instance, PromptBatch, Sample


@dataclass(frozen=True)
class Draws:
    """All trials of one condition for one instance.

    Attributes:
        instance: the object.
        condition: the condition.
        prompts: T prompts.
        hashes: T prompt hashes.
    """

    instance: Instance
    condition: Condition
    prompts: PromptBatch
    hashes: tuple[str, ...]


@dataclass(frozen=True)
class DrawnSample:
    """An image with all prompts of one or several protocols.

    Attributes:
        sample: the image.
        draws: of each protocol, in the order of the protocols.
        objects: one row per instance.
    """

    sample: Sample
    draws: tuple[tuple[Draws, ...], ...]
    objects: tuple[ObjectRow, ...]


def draw_sample(sample: Sample, dataset_key: str, protocols: Sequence[EvalProtocol]) -> DrawnSample:
    """Return an image with all prompts of several protocols.

    Raises:
        DatasetError: a condition cannot be drawn from an instance.
    """
    draws = tuple(draw_prompts(sample, dataset_key, protocol) for protocol in protocols)
    return DrawnSample(sample, draws, tuple(_object_rows(sample)))


def draw_prompts(sample: Sample, dataset_key: str, protocol: EvalProtocol) -> tuple[Draws, ...]:
    """Return all prompts of a protocol for an image, instance by instance.

    The random generator of each prompt has the key (seed, data set, sample, instance, family,
    trial).

    Raises:
        DatasetError: a condition cannot be drawn from an instance.
    """
    key = protocol.seed, dataset_key
    return tuple(
        _draw(sample.sample_id, instance, condition, key)
        for instance in sample.instances
        for condition in protocol.conditions
    )


def _draw(sample_id: str, instance: Instance, condition: Condition, key: tuple[int, str]) -> Draws:
    degradation = condition.degradation
    where = (*key, sample_id, instance.instance_id, degradation.family)
    try:
        prompts = [
            degradation(instance.mask, keyed_generator(*where, trial))
            for trial in range(condition.trials)
        ]
    except (DatasetError, ValueError) as error:
        raise DatasetError(
            f"sample '{sample_id}', instance '{instance.instance_id}', "
            f"condition '{condition.name}': {error}"
        ) from error
    hashes = tuple(prompt_hash(prompt) for prompt in prompts)
    return Draws(instance, condition, PromptBatch.stack(prompts), hashes)


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
