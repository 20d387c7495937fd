"""Inspect Stable-SAM: the positions that its decoder samples, and the weights of its router."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samrobust.errors import SegmenterError
from samrobust.evaluation.prompts import Draws, draw_prompts
from samrobust.geometry import SMALL_AREA, box_iou, mask_to_box
from samrobust.metrics.overlap import iou
from samrobust.protocol import check_drawn
from samrobust.segmenters.sam import Sam
from samrobust.segmenters.stable_sam import StableSam
from samrobust.types import (
    Dataset,
    EvalProtocol,
    Floats,
    Image,
    Instance,
    Mask,
    PromptBatch,
    Sample,
)

BATCH_SIZE = 16
"""Prompts per forward pass."""


@dataclass(frozen=True)
class MaskReading:
    """One model's mask of one prompt, and the image positions that its output token attends to.

    Attributes:
        mask: (H, W) bool.
        iou: of the mask with the target.
        places: (P, 2) xy of the positions inside the image, in pixels of the image; of plugins with
            groups of channels, the mean over these.
        shares: (P,), attention at each position; positions outside the image are left out, so the
            sum is at most 1.
    """

    mask: Mask
    iou: float
    places: Floats
    shares: Floats


@dataclass(frozen=True)
class ReadingPair:
    """The readings of SAM and of Stable-SAM for one prompt of one object.

    Attributes:
        sample_id: of the image.
        image: (H, W, 3) uint8.
        target: (H, W) bool.
        condition: name of the condition that drew the box.
        box: (4,) xyxy.
        sam: SAM's reading.
        stable: Stable-SAM's.
    """

    sample_id: str
    image: Image
    target: Mask
    condition: str
    box: Floats
    sam: MaskReading
    stable: MaskReading


@dataclass(frozen=True)
class RoutedBoxes:
    """The router's inputs and weights for P boxes.

    Attributes:
        box_iou: (P,), of each box with the exact box.
        weights: decoder layer with a plugin -> (P,) weights of the deformed features.
        tokens: decoder layer with a plugin -> (P, C) output tokens, the router's input.
        mask_iou: (P,), of the mask with the target.
        image: (P,), index of each box's image.
    """

    box_iou: Floats
    weights: Mapping[int, Floats]
    tokens: Mapping[int, Floats]
    mask_iou: Floats
    image: npt.NDArray[np.int64]


def median_instance(sample: Sample) -> Instance | None:
    """Return the object of median area among those of at least 1,024 pixels, None if none is."""
    large = [instance for instance in sample.instances if instance.mask.sum() >= SMALL_AREA]
    large.sort(key=lambda instance: int(instance.mask.sum()))
    return large[len(large) // 2] if large else None


@torch.inference_mode()
def compare_readings(
    sam: Sam,
    stable: StableSam,
    dataset: Dataset,
    protocol: EvalProtocol,
    count: int,
    *,
    layer: int | None = None,
) -> Iterator[ReadingPair]:
    """Yield the readings of evenly spaced images, for the first box of each condition.

    Args:
        sam: SAM without plugins.
        stable: another copy of it, with plugins.
        dataset: the images.
        protocol: of boxes.
        count: number of images; the object of median area is used in each.
        layer: decoder layer whose attention is read; None for the first that has a plugin.

    Raises:
        SegmenterError: the layer has no plugin, or too few images have a large object.
        ProtocolError: a condition searches for its prompt.
    """
    check_drawn(protocol)
    layers = stable.plugins.settings.layers
    layer = layers[0] if layer is None else layer
    if layer not in layers:
        raise SegmenterError(
            f"{stable.info.label}: has no plugin at layer {layer}; its plugins are at "
            + ", ".join(map(str, layers))
        )
    ids = dataset.ids()
    chosen: set[str] = set()
    for number in range(count):
        for sample_id in ids[number * len(ids) // count :]:
            sample = dataset[sample_id]
            instance = median_instance(sample)
            if instance is not None and sample_id not in chosen:
                chosen.add(sample_id)
                drawn = draw_prompts(sample, dataset.info.key, protocol)
                of_instance = [draws for draws in drawn if draws.instance is instance]
                yield from _readings_of(sam, stable, sample, of_instance, layer)
                break
        else:
            raise SegmenterError(
                f"{dataset.info.label}: fewer than {count} images have an object of at least "
                f"{SMALL_AREA} pixels"
            )


@torch.inference_mode()
def routed_boxes(
    stable: StableSam, dataset: Dataset, sample_ids: Sequence[str], protocol: EvalProtocol
) -> RoutedBoxes:
    """Return the router's weights for all boxes of a protocol, on objects of 1,024 pixels or more.

    Args:
        stable: with a router.
        dataset: the images.
        sample_ids: of the images to use.
        protocol: of boxes.

    Raises:
        SegmenterError: there is no router, or no object is large enough.
        ProtocolError: a condition searches for its prompt.
    """
    check_drawn(protocol)
    if not stable.plugins.settings.routing:
        raise SegmenterError(f"{stable.info.label}: has no router, only deformable sampling")
    box_ious, mask_ious, images = [], [], []
    weights: dict[int, list[Tensor]] = defaultdict(list)
    tokens: dict[int, list[Tensor]] = defaultdict(list)
    for image, sample_id in enumerate(sample_ids):
        sample = dataset[sample_id]
        (embedding,) = stable.encode([sample.image])
        for draws in draw_prompts(sample, dataset.info.key, protocol):
            target = draws.instance.mask
            if target.sum() < SMALL_AREA:
                continue
            exact = mask_to_box(target)
            for start in range(0, len(draws.prompts), BATCH_SIZE):
                prompts = draws.prompts[start : start + BATCH_SIZE]
                for layer, reading in stable.readings(embedding, prompts).items():
                    weights[layer].append(reading.routing[:, 0])
                    tokens[layer].append(reading.token)
                masks = stable.predict(embedding, prompts).masks[:, 0]
                mask_ious.append(iou(masks, _on(masks, target)).cpu())
                box_ious += [box_iou(box, exact) for box in _boxes(prompts)]
                images += [image] * len(prompts)
    if not weights:
        raise SegmenterError(f"{dataset.info.label}: no object of at least {SMALL_AREA} pixels")
    return RoutedBoxes(
        np.array(box_ious),
        _by_layer(weights),
        _by_layer(tokens),
        torch.cat(mask_ious).numpy(),
        np.array(images),
    )


def _readings_of(
    sam: Sam, stable: StableSam, sample: Sample, drawn: Sequence[Draws], layer: int
) -> Iterator[ReadingPair]:
    """Yield the readings for the first prompt of each condition, all of one object."""
    (embedding,) = stable.encode([sample.image])
    for draws in drawn:
        target = draws.instance.mask
        prompts = draws.prompts[:1]
        (box,) = _boxes(prompts)
        reading = stable.readings(embedding, prompts)[layer]
        regular = reading.regular[None]
        deformed_share, regular_share = reading.routing.T.view(2, -1, 1, 1)
        read_by_sam = [(regular, reading.attention_before)]
        read_by_stable = [
            (regular, regular_share * reading.attention),
            (reading.locations, deformed_share * reading.attention),
        ]
        readings = [
            _mask_reading(model.predict(embedding, prompts).masks[:, 0], target, read)
            for model, read in ((sam, read_by_sam), (stable, read_by_stable))
        ]
        condition = draws.condition.name
        yield ReadingPair(sample.sample_id, sample.image, target, condition, box, *readings)


def _mask_reading(
    masks: Tensor, target: Mask, read: Sequence[tuple[Tensor, Tensor]]
) -> MaskReading:
    """Return the reading of a mask (1, H, W); pairs are places (1, h, w, 2), shares (1, h, w)."""
    places = np.concatenate([xy.reshape(-1, 2).numpy(force=True) for xy, _ in read])
    shares = np.concatenate([share.flatten().numpy(force=True) for _, share in read])
    inside = ((places >= 0) & (places <= np.array(target.shape[::-1]) - 1)).all(axis=1)
    value = iou(masks, _on(masks, target)).item()
    return MaskReading(masks[0].numpy(force=True), value, places[inside], shares[inside])


def _by_layer(parts: Mapping[int, Sequence[Tensor]]) -> dict[int, Floats]:
    return {layer: torch.cat([*rows]).double().numpy(force=True) for layer, rows in parts.items()}


def _boxes(prompts: PromptBatch) -> Floats:
    if prompts.boxes is None:
        raise SegmenterError("routing and readings need a protocol of boxes")
    return prompts.boxes.astype(np.float64)


def _on(masks: Tensor, target: Mask) -> Tensor:
    return torch.from_numpy(target.copy()).to(masks.device)
