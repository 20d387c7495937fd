"""Draw the prompts of an image for all conditions and trials, with NumPy, in loading processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from samrobust.errors import DatasetError
from samrobust.geometry import mask_to_box, perimeter
from samrobust.runs.manifest import ObjectRow
from samrobust.seeding import keyed_generator, prompt_hash
from samrobust.types import (
    Condition,
    EvalProtocol,
    Image,
    ImageCondition,
    Instance,
    PromptBatch,
    Sample,
)


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
    objects = tuple(_object_row(sample.sample_id, instance) for instance in sample.instances)
    return DrawnSample(sample, draws, objects)


def draw_prompts(sample: Sample, dataset_key: str, protocol: EvalProtocol) -> tuple[Draws, ...]:
    """Return all prompts of a protocol for an image, instance by instance.

    The random generator of each prompt has the key (seed, data set, sample, instance, family,
    trial): conditions that differ in their images alone have the same prompts, drawn once.

    Raises:
        DatasetError: a condition cannot be drawn from an instance.
    """
    key = protocol.seed, dataset_key
    draws: list[Draws] = []
    for instance in sample.instances:
        drawn: dict[tuple[int, int], Draws] = {}
        for condition in protocol.conditions:
            prompts = id(condition.degradation), condition.trials
            if prompts not in drawn:
                drawn[prompts] = _draw(sample.sample_id, instance, condition, key)
            draws.append(replace(drawn[prompts], condition=condition))
    return tuple(draws)


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


def _object_row(sample_id: str, instance: Instance) -> ObjectRow:
    x0, y0, x1, y1 = mask_to_box(instance.mask).astype(int)
    cropped = instance.mask[y0 : y1 + 1, x0 : x1 + 1]
    area, length = int(np.count_nonzero(cropped)), perimeter(cropped)
    return ObjectRow(sample_id, instance.instance_id, instance.category, area, length)
