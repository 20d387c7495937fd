"""Draw the examples of each training step from keys: the same on any machine and when resumed."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from samrobust.degradations.boxes import ExactBox
from samrobust.errors import DatasetError
from samrobust.evaluation.loop import end_with_parent, identity_collate
from samrobust.seeding import keyed_generator
from samrobust.segmenters.frames import InputFrame
from samrobust.training.augment import (
    draw_ellipses,
    paste_object,
    random_colours,
    random_window,
    shrink_mask,
)
from samrobust.training.recipe import Phase, Recipe
from samrobust.types import Dataset, Image, Mask, PromptBatch, Sample

MAX_PASTED = 3
"""Objects of another image that are pasted into a crop."""
MAX_TRIES = 100
"""Crops in a row that have no object before an error is raised."""
CACHE_BYTES = 2**30
"""Of decoded images per loading process, so that small data sets are decoded once."""


@dataclass(frozen=True)
class Example:
    """One image of a step, with one or several kinds of prompts.

    Attributes:
        image: (3, h, w) uint8 RGB in the encoder's input frame, without padding; black if the phase
            has no images.
        size_hw: of the crop; prompts are in its pixels.
        input_size_hw: of the crop in the encoder's input.
        prompts: N prompts of each kind.
        exact: the N exact boxes.
        targets: (N, 4h', 4w') float32, the masks in the grid of the decoder's logits: the fraction
            of each position's area that is foreground.
        stride: pixels of the encoder's input per position of that grid.
        key: step, and slot within the step.
        sample_id: of its image, for messages.
    """

    image: Tensor
    size_hw: tuple[int, int]
    input_size_hw: tuple[int, int]
    prompts: tuple[PromptBatch, ...]
    exact: PromptBatch
    targets: Tensor
    stride: int
    key: tuple[int, int]
    sample_id: str


@dataclass(frozen=True)
class Pool:
    """Some images of a data set, for training or held out for validation.

    Attributes:
        dataset: the data set.
        sample_ids: at least one, in the data set's order.
        weight: how often its images are drawn, relative to other pools; > 0.
    """

    dataset: Dataset
    sample_ids: Sequence[str]
    weight: float = 1.0


class ExampleDraws:
    """The torch Dataset of examples by (step, slot), for loading processes.

    Args:
        recipe: how examples are drawn.
        pools: the images.
        side: of the model's input, for phases that name none.
        stride: see `Example`.
    """

    def __init__(self, recipe: Recipe, pools: Sequence[Pool], side: int, *, stride: int) -> None:
        self._recipe = recipe
        self._pools = pools
        self._side = side
        self._stride = stride
        self._cache = _SampleCache(CACHE_BYTES)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """Return the example of a slot of a step.

        Raises:
            DatasetError: an image cannot be read, or no object can be found.
        """
        step, slot = key
        stride = self._stride
        rng = keyed_generator("train", self._recipe.seed, step, slot)
        phase, _ = self._recipe.phase_at(step)
        side = phase.side or self._side
        kinds = [_choose(rng, self._recipe.prompts).degradation for _ in range(phase.kinds)]
        if phase.source == "ellipses":
            sample = draw_ellipses(rng, phase.objects, side)
            masks, sample_id = [shape.mask for shape in sample.instances], sample.sample_id
            image = torch.from_numpy(sample.image).movedim(-1, 0)
        else:
            photograph, masks, sample_id = self._draw_crop(rng, phase, side)
            image = InputFrame("longest-side", side).to_input(photograph)
        size_hw = masks[0].shape[0], masks[0].shape[1]
        input_hw = image.shape[-2], image.shape[-1]
        prompts = tuple(PromptBatch.stack([kind(mask, rng) for mask in masks]) for kind in kinds)
        exact = PromptBatch.stack([ExactBox()(mask, rng) for mask in masks])  # draws nothing
        shrunk = [shrink_mask(mask, input_hw, side // stride, stride=stride) for mask in masks]
        targets = torch.from_numpy(np.stack(shrunk))
        return Example(image, size_hw, input_hw, prompts, exact, targets, stride, key, sample_id)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Example] | DatasetError:
        """Return the examples of a batch for a `DataLoader`, or an error instead of raising it.

        The message of an error raised in a loading process would include its traceback.
        """
        try:
            return [self[key] for key in keys]
        except DatasetError as error:
            return error

    def _draw_crop(
        self, rng: np.random.Generator, phase: Phase, side: int
    ) -> tuple[Image, list[Mask], str]:
        """Return a crop of a random image, masks of its objects, and the image's id."""
        how = self._recipe.augmentation
        for _ in range(MAX_TRIES):
            sample_id, sample = self._draw_sample(rng)
            rows, columns = random_window(rng, sample.image.shape[:2], how.least_crop)
            image = sample.image[rows, columns]
            min_pixels = how.least_pixels * (max(image.shape[:2]) / side) ** 2
            masks = sample.some_masks(rng, (rows, columns), phase.objects, min_pixels)
            if masks:
                step = -1 if rng.random() < how.flip else 1
                image = random_colours(rng, image[:, ::step], how)
                masks = [np.ascontiguousarray(mask[:, ::step]) for mask in masks]
                if rng.random() < how.paste:
                    image, masks = self._paste(rng, image, masks)
                    masks = [mask for mask in masks if np.count_nonzero(mask) >= min_pixels]
            if masks:
                return image, masks[: phase.objects], sample_id
        raise DatasetError(
            f"no object of at least {how.least_pixels} pixels at side {side} in {MAX_TRIES} images"
        )

    def _paste(
        self, rng: np.random.Generator, image: Image, masks: list[Mask]
    ) -> tuple[Image, list[Mask]]:
        """Return an image with pasted objects of another image, and all masks, the pasted first."""
        how = self._recipe.augmentation
        _, source = self._draw_sample(rng)
        everywhere = slice(None), slice(None)
        count = int(rng.integers(1, MAX_PASTED, endpoint=True))
        for mask in source.some_masks(rng, everywhere, count, how.least_pixels):
            colours = random_colours(rng, source.image, how)
            image, masks = paste_object(rng, image, masks, colours, mask)
        return image, masks

    def _draw_sample(self, rng: np.random.Generator) -> tuple[str, "_PackedSample"]:
        pool = _choose(rng, self._pools)
        sample_id = pool.sample_ids[rng.integers(len(pool.sample_ids))]
        return sample_id, self._cache.get(pool, sample_id)


def load_examples(
    draws: ExampleDraws,
    recipe: Recipe,
    *,
    first_step: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[list[Example]]:
    """Yield this process's examples of each step from `first_step` on, loaded ahead.

    Args:
        draws: the examples.
        recipe: its phases say how many slots each step has.
        first_step: counted from 0.
        workers: loading processes; 0 for none.
        rank: of this process among those that train together.
        world: number of processes that train together and share the slots of a step.

    Raises:
        DatasetError: an image cannot be read, or no object can be found.
    """
    slots = [
        [(step, slot) for slot in range(rank, recipe.phase_at(step)[0].images, world)]
        for step in range(first_step, recipe.n_steps)
    ]
    loader: DataLoader[Any] = DataLoader(
        draws,  # type: ignore[arg-type]
        batch_sampler=slots,
        num_workers=workers,
        collate_fn=identity_collate,
        prefetch_factor=4 if workers else None,
        worker_init_fn=end_with_parent,
    )
    for batch in loader:
        if isinstance(batch, DatasetError):
            raise batch
        yield batch


class _PackedSample:
    """A decoded image with its masks as bits.

    Attributes:
        image: (H, W, 3) uint8.
        n_bytes: its size in memory.
    """

    def __init__(self, sample: Sample) -> None:
        self.image = sample.image
        self._bits = [np.packbits(instance.mask, axis=1) for instance in sample.instances]
        self.n_bytes = self.image.nbytes + sum(bits.nbytes for bits in self._bits)

    def some_masks(
        self,
        rng: np.random.Generator,
        window: tuple[slice, slice],
        count: int,
        min_pixels: float,
    ) -> list[Mask]:
        """Return up to `count` masks, cut to a window, of at least `min_pixels` pixels there."""
        rows, columns = window
        width = self.image.shape[1]
        masks: list[Mask] = []
        for index in rng.permutation(len(self._bits)):
            bits = self._bits[index][rows]
            mask = np.unpackbits(bits, axis=1, count=width)[:, columns].astype(np.bool_)
            if np.count_nonzero(mask) >= min_pixels:
                masks.append(mask)
            if len(masks) == count:
                break
        return masks


class _SampleCache:
    """The most recently used samples, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._bytes_left = max_bytes
        self._samples: OrderedDict[tuple[int, str], _PackedSample] = OrderedDict()

    def get(self, pool: Pool, sample_id: str) -> _PackedSample:
        key = id(pool), sample_id
        if key in self._samples:
            self._samples.move_to_end(key)
            return self._samples[key]
        sample = self._samples[key] = _PackedSample(pool.dataset[sample_id])
        self._bytes_left -= sample.n_bytes
        while self._bytes_left < 0:
            _, dropped = self._samples.popitem(last=False)
            self._bytes_left += dropped.n_bytes
        return sample


def _choose(rng: np.random.Generator, weighted: Sequence[Any]) -> Any:  # noqa: ANN401
    """Return one of several items, with probabilities proportional to their weights."""
    weights = np.array([item.weight for item in weighted])
    return weighted[rng.choice(len(weighted), p=weights / weights.sum())]
