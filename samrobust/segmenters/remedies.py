"""Remedies for bad prompts that need no training: each is a segmenter around a segmenter.

`sam-nano + ensemble-boxes:5` asks SAM-nano five times for each prompt. A remedy sees the image, the
prompt and the answers; never the target. All answer with one mask a prompt. Letters as everywhere:
N prompts, K answers to each, (H, W) the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional

from samrobust.degradations.human import MOST, HumanBox
from samrobust.errors import SegmenterError
from samrobust.files import convert
from samrobust.metrics.overlap import iou
from samrobust.seeding import keyed_generator
from samrobust.segmenters import REMEDIES, REMEDY
from samrobust.segmenters.sam_decoder import CANDIDATES
from samrobust.types import Image, Prediction, PromptBatch, Segmenter, SegmenterInfo

DECODES = "decodes"
"""Setting of a segmenter with remedies: how often a prompt passes its decoder."""
STABILITY_OFFSET = 1.0
"""Logits above and below the threshold between which a stable mask does not change, as in SAM's
automatic mask generator (Kirillov et al. 2023, app. B)."""
SIMILAR = 0.5
"""Cosine similarity above which a position is like the object (docs/sources/robustness.md, C.4)."""
GROWTH_SHARE, GROWTH_PIXELS = 0.1, 10
"""A side of an elastic box grows by the smaller of the two in a round."""
_Count = Annotated[int, Meta(ge=3, le=100)]
"""Of two answers a vote is the first one: nothing would change."""
_Percentile = Annotated[float, Meta(gt=0, le=MOST)]
_Rounds = Annotated[int, Meta(ge=1, le=10)]


@dataclass(frozen=True)
class Seen:
    """An image as a segmenter with a remedy knows it.

    Attributes:
        embedding: the inner segmenter's.
        size_hw: of the image.
    """

    embedding: Any
    size_hw: tuple[int, int]


class Remedy(Protocol):
    """What is done with each prompt; its fields are its arguments."""

    @property
    def decodes(self) -> int:
        """Return how often a prompt passes the inner segmenter."""
        ...

    def encode(self, segmenter: Segmenter[Any], images: Sequence[Image]) -> list[Any]:
        """Return what `answer` needs of each image."""
        ...

    def answer(self, segmenter: Segmenter[Any], seen: Any, prompts: PromptBatch) -> Prediction:  # noqa: ANN401
        """Return one mask a prompt."""
        ...


class Remedied:
    """A segmenter with a remedy; see `samrobust.types.Segmenter`.

    Args:
        segmenter: the inner one, of any kind.
        remedy: what is done with it.
        text: how the remedy is named, with its arguments.

    Raises:
        SegmenterError: the remedy needs what the segmenter does not have.
    """

    def __init__(self, segmenter: Segmenter[Any], remedy: Remedy, text: str) -> None:
        self._segmenter = segmenter
        self._remedy = remedy
        info = segmenter.info
        decodes = remedy.decodes * int(info.settings.get(DECODES, 1))
        self.info: SegmenterInfo = replace(
            info,
            variant=f"{info.variant}{REMEDY}{text}".strip(),
            multimask=False,
            settings={**info.settings, DECODES: decodes},
        )

    def encode(self, images: Sequence[Image]) -> list[Any]:
        """Return what the remedy needs of each image."""
        return self._remedy.encode(self._segmenter, images)

    def predict(
        self,
        embedding: Any,  # noqa: ANN401
        prompts: PromptBatch,
        *,
        multimask: bool = False,  # noqa: ARG002
    ) -> Prediction:
        """Return one mask a prompt, with `multimask` too."""
        return self._remedy.answer(self._segmenter, embedding, prompts)


def with_remedy(segmenter: Segmenter[Any], text: str) -> Remedied:
    """Return a segmenter with a remedy.

    Args:
        segmenter: of any kind.
        text: name and arguments: "medoid", "ensemble-boxes:5", "ensemble-boxes:5,percentile=75".

    Raises:
        UnknownNameError: no remedy has that name.
        SegmenterError: an argument is unknown or not allowed, or the remedy needs what the
            segmenter does not have.
    """
    name, _, arguments = text.partition(":")
    kind = REMEDIES.load(name.strip())
    names = [field.name for field in fields(kind)]
    table: dict[str, object] = {}
    for place, argument in enumerate(filter(None, arguments.split(","))):
        key, equals, value = (part.strip() for part in argument.rpartition("="))
        if not equals:
            if place >= len(names):
                raise SegmenterError(f"{name}: takes {len(names)} arguments, got '{arguments}'")
            key = names[place]
        try:
            table[key] = int(value) if value.isdigit() else float(value)
        except ValueError:
            raise SegmenterError(f"{name}: {key} must be a number, got '{value}'") from None
    try:
        remedy: Remedy = convert(table, kind, where=name)
    except ValueError as error:
        raise SegmenterError(str(error)) from error
    return Remedied(segmenter, remedy, text.replace(" ", ""))


class _SeesOnce:
    """A remedy that needs an image's embedding once."""

    def encode(self, segmenter: Segmenter[Any], images: Sequence[Image]) -> list[Seen]:
        embeddings = segmenter.encode(images)
        return [
            Seen(embedding, (image.shape[0], image.shape[1]))
            for embedding, image in zip(embeddings, images, strict=True)
        ]


@dataclass(frozen=True)
class EnsembleBoxes(_SeesOnce):
    """Asks with the given box and others around it, as far from it as people's are from the tight.

    The answers vote: a pixel is foreground where more than half of them have it, or half of them
    and the answer to the given box. Differs: UncertSAM averages probabilities
    (docs/sources/robustness.md, C.4), which not every segmenter gives. The boxes depend on the
    prompt alone. Prompts without a box are asked once.

    Attributes:
        count: K, of boxes, with the given one.
        percentile: how far off the others are, in human percentiles, as of `human-box`.
    """

    count: _Count = 5
    percentile: _Percentile = 50.0

    @property
    def decodes(self) -> int:
        """Return K."""
        return self.count

    def answer(self, segmenter: Segmenter[Any], seen: Seen, prompts: PromptBatch) -> Prediction:
        """Return one mask a prompt; its quality is the mean of the answers' qualities."""
        if prompts.boxes is None:
            return segmenter.predict(seen.embedding, prompts)
        boxes = _boxes_around(prompts.boxes, seen.size_hw, self.count - 1, self.percentile)
        answers = [
            segmenter.predict(seen.embedding, replace(prompts, boxes=each))
            for each in (prompts.boxes, *boxes)
        ]
        masks = torch.stack([each.masks[:, 0] for each in answers])
        quality = torch.stack([each.quality[:, 0] for each in answers])
        return self._combined(masks, quality)

    def _combined(self, masks: Tensor, quality: Tensor) -> Prediction:
        """Return one of K answers' masks (K, N, H, W) and qualities (K, N)."""
        return _voted(masks, quality, torch.ones_like(quality))


@dataclass(frozen=True)
class Medoid(EnsembleBoxes):
    """As `EnsembleBoxes`, but of the answers the one that is most like the others.

    That is the one of highest mean IoU with the others; of equal ones the first.
    """

    def _combined(self, masks: Tensor, quality: Tensor) -> Prediction:
        best = _agreement(masks).argmax(dim=0)
        rows = torch.arange(masks.shape[1], device=best.device)
        return Prediction(masks[best, rows][:, None], quality[best, rows][:, None])


@dataclass(frozen=True)
class AgreeWeighted(EnsembleBoxes):
    """As `EnsembleBoxes`, but an answer's vote counts as much as it is like the others.

    The weight is its mean IoU with them (docs/sources/robustness.md, C.4).
    """

    def _combined(self, masks: Tensor, quality: Tensor) -> Prediction:
        return _voted(masks, quality, _agreement(masks))


@dataclass(frozen=True)
class BoxFromMask(_SeesOnce):
    """Asks again with the tight box of the answer, some times; points stay.

    An answer without a pixel is kept as it is.

    Attributes:
        rounds: how often it asks again.
    """

    rounds: _Rounds = 1

    @property
    def decodes(self) -> int:
        """Return 1 and one a round."""
        return 1 + self.rounds

    def answer(self, segmenter: Segmenter[Any], seen: Seen, prompts: PromptBatch) -> Prediction:
        """Return one mask a prompt.

        Raises:
            SegmenterError: the segmenter takes no boxes.
        """
        if "box" not in segmenter.info.prompts:
            raise SegmenterError(f"box-from-mask: {segmenter.info.label} takes no boxes")
        answer = segmenter.predict(seen.embedding, prompts)
        for _ in range(self.rounds):
            boxes, is_empty = _tight_boxes(answer.masks[:, 0])
            again = segmenter.predict(seen.embedding, replace(prompts, boxes=boxes))
            answer = Prediction(
                torch.where(is_empty[:, None, None, None], answer.masks, again.masks),
                torch.where(is_empty[:, None], answer.quality, again.quality),
            )
        return answer


@dataclass(frozen=True)
class ElasticBox(_SeesOnce):
    """Grows the given box to where the image is like the answer's object, and asks again.

    The embedding's positions are compared with the mean embedding inside of the first answer. In a
    round, a side moves out by a strip of a tenth of the box, 10 pixels at most, where more than a
    share of the strip is similar (SAMRefiner's "CEBox"; docs/sources/robustness.md, C.4). Without
    SAMRefiner's mask prompts and choice among three masks. Prompts without a box are asked once.

    Attributes:
        margin: share of a strip that must be similar.
        rounds: of growing.
    """

    margin: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    rounds: _Rounds = 5

    @property
    def decodes(self) -> int:
        """Return 2."""
        return 2

    def answer(self, segmenter: Segmenter[Any], seen: Seen, prompts: PromptBatch) -> Prediction:
        """Return one mask a prompt.

        Raises:
            SegmenterError: the segmenter is none of the SAM family, or has a remedy already.
        """
        sam = _of_sam_family(segmenter, "elastic-box")
        answer = segmenter.predict(seen.embedding, prompts)
        if prompts.boxes is None:
            return answer
        width = sam.model.mask_decoder.transformer_dim  # channels beyond are of finer features
        features = functional.normalize(
            seen.embedding.features[0, :width].flatten(1), dim=0
        )  # C x L
        grid_hw = seen.embedding.features.shape[-2:]
        inside = sam.to_grid(seen.embedding, answer.masks[:, 0], grid_hw).flatten(1)  # N x L
        mean = functional.normalize(inside @ features.T, dim=1)
        similarity = (mean @ features).view(-1, 1, *grid_hw)
        similar = sam.to_masks(seen.embedding, similarity - SIMILAR)[:, 0].numpy(force=True)
        boxes = prompts.boxes.copy()
        for row, place in enumerate(similar):
            for _ in range(self.rounds):
                boxes[row] = _grown(boxes[row], place, self.margin)
        return segmenter.predict(seen.embedding, replace(prompts, boxes=boxes))


@dataclass(frozen=True)
class StabilitySelect(_SeesOnce):
    """Answers, of three candidates, with the one that changes least with the logits' threshold.

    That is the one of highest IoU between the masks at thresholds +1 and -1, as EdgeSAM chooses;
    counted in the decoder's own grid, not in that of the image.
    """

    decodes = 1

    def answer(self, segmenter: Segmenter[Any], seen: Seen, prompts: PromptBatch) -> Prediction:
        """Return one mask a prompt.

        Raises:
            SegmenterError: the segmenter is none of the SAM family, or has a remedy already.
        """
        sam = _of_sam_family(segmenter, "stability-select")
        logits, quality = segmenter.logits(  # type: ignore[attr-defined]
            seen.embedding, prompts, masks=CANDIDATES
        )
        inner, outer = ((logits > sign * STABILITY_OFFSET).sum(dim=(-2, -1)) for sign in (1, -1))
        best = (inner / outer.clamp(min=1)).argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        chosen = logits[rows, best][:, None]
        return Prediction(sam.to_masks(seen.embedding, chosen), quality[rows, best][:, None])


@dataclass(frozen=True)
class EnsembleFlips:
    """Asks for the image, its mirror image and the image upside down; the three answers vote."""

    decodes = 3

    def encode(self, segmenter: Segmenter[Any], images: Sequence[Image]) -> list[tuple[Seen, ...]]:
        """Return each image's three embeddings."""
        flipped = [
            [np.ascontiguousarray(_flipped(image, axis)) for image in images] for axis in _AXES
        ]
        sees = [_SeesOnce().encode(segmenter, each) for each in flipped]
        return list(zip(*sees, strict=True))

    def answer(
        self, segmenter: Segmenter[Any], seen: tuple[Seen, ...], prompts: PromptBatch
    ) -> Prediction:
        """Return one mask a prompt; its quality is the mean of the answers' qualities."""
        masks, quality = [], []
        for each, axis in zip(seen, _AXES, strict=True):
            answer = segmenter.predict(
                each.embedding, _flipped_prompts(prompts, each.size_hw, axis)
            )
            mask = answer.masks[:, 0]
            masks.append(mask if axis is None else mask.flip(axis - 2))
            quality.append(answer.quality[:, 0])
        return _voted(torch.stack(masks), torch.stack(quality), torch.ones_like(quality[0]))


_AXES = (None, 1, 0)
"""Of (H, W), along which an image is turned around."""


def _of_sam_family(segmenter: Any, remedy: str) -> Any:  # noqa: ANN401
    """Return the SAM that a segmenter is, or is made of."""
    sam = getattr(segmenter, "base", segmenter)
    if not (hasattr(segmenter, "logits") and hasattr(sam, "to_masks")):
        raise SegmenterError(
            f"{remedy} needs the logits and embedding of a SAM, and stands first after it; "
            f"got {segmenter.info.label}"
        )
    return sam


def _boxes_around(
    boxes: npt.NDArray[np.float32], size_hw: tuple[int, int], count: int, percentile: float
) -> npt.NDArray[np.float32]:
    """Return (count, N, 4) boxes around N boxes, drawn from a key that is the box."""
    human = HumanBox(percentile)
    drawn = []
    for box in boxes:
        rng = keyed_generator("remedy", box.tobytes().hex())
        drawn.append([human.around(box.astype(np.float64), size_hw, rng) for _ in range(count)])
    return np.swapaxes(np.array(drawn, np.float32), 0, 1)


def _voted(masks: Tensor, quality: Tensor, weights: Tensor) -> Prediction:
    """Return the masks of a vote of K answers (K, N, H, W); in a tie the first one's vote counts.

    Args:
        masks: of the answers.
        quality: (K, N).
        weights: (K, N) or (N,), >= 0.
    """
    weights = weights.expand_as(quality)
    votes = torch.zeros(masks.shape[1:], device=masks.device)
    for mask, weight in zip(masks, weights, strict=True):
        votes += mask * weight[:, None, None]
    half = weights.sum(dim=0)[:, None, None] / 2
    voted = (votes > half) | ((votes == half) & masks[0])
    return Prediction(voted[:, None], quality.mean(dim=0)[:, None])


def _agreement(masks: Tensor) -> Tensor:
    """Return (K, N), the mean IoU of each of K answers (K, N, H, W) with the others."""
    by_prompt = [
        torch.stack([iou(of_prompt, mask) for mask in of_prompt]) for of_prompt in masks.unbind(1)
    ]
    ious = torch.stack(by_prompt, dim=-1)  # K x K x N
    return (ious.sum(dim=0) - 1) / (len(masks) - 1)


def _tight_boxes(masks: Tensor) -> tuple[npt.NDArray[np.float32], Tensor]:
    """Return boxes (N, 4) of masks (N, H, W), and which masks are empty: theirs are the image's."""
    height, width = masks.shape[-2:]
    columns, rows = masks.any(dim=1).int(), masks.any(dim=2).int()  # N x W, N x H
    x0, y0 = columns.argmax(dim=1), rows.argmax(dim=1)
    x1 = width - 1 - columns.flip(1).argmax(dim=1)
    y1 = height - 1 - rows.flip(1).argmax(dim=1)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float().numpy(force=True)
    return boxes, ~masks.flatten(1).any(dim=1)


def _grown(
    box: npt.NDArray[np.float32], similar: npt.NDArray[np.bool_], margin: float
) -> npt.NDArray[np.float32]:
    """Return a box (4,) with the sides moved out whose strip of (H, W) is similar enough."""
    height, width = similar.shape
    x0, y0, x1, y1 = (int(value) for value in np.round(box))
    steps = [
        max(1, min(round(GROWTH_SHARE * extent), GROWTH_PIXELS)) for extent in (x1 - x0, y1 - y0)
    ]
    rows, columns = slice(y0, y1 + 1), slice(x0, x1 + 1)
    strips = (
        similar[rows, max(0, x0 - steps[0]) : x0],
        similar[max(0, y0 - steps[1]) : y0, columns],
        similar[rows, x1 + 1 : x1 + 1 + steps[0]],
        similar[y1 + 1 : y1 + 1 + steps[1], columns],
    )
    grown = box.copy()
    limits = (0, 0, width - 1, height - 1)
    for side, strip in enumerate(strips):
        if strip.size and strip.mean() > margin:
            moved = box[side] + (steps[side % 2] if side > 1 else -steps[side % 2])
            grown[side] = min(moved, limits[side]) if side > 1 else max(moved, limits[side])
    return grown


def _flipped(image: Image, axis: int | None) -> Image:
    return image if axis is None else np.flip(image, axis)


def _flipped_prompts(
    prompts: PromptBatch, size_hw: tuple[int, int], axis: int | None
) -> PromptBatch:
    """Return prompts for an image that was turned around along an axis of (H, W)."""
    if axis is None:
        return prompts
    last, place = size_hw[axis] - 1, 1 - axis  # of x and y
    points = prompts.points.copy()
    points[..., place] = last - points[..., place]
    boxes = prompts.boxes
    if boxes is not None:
        boxes = boxes.copy()
        boxes[:, [place, place + 2]] = last - boxes[:, [place + 2, place]]
    return PromptBatch(boxes, points, prompts.labels)
