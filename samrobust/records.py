"""What a run stores: scores, objects, masks and photographs, one a row, and what the run is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from samrobust.types import DatasetInfo, SegmenterInfo

Keep = Literal["none", "worst", "all"]


@dataclass(frozen=True, slots=True)
class Score:
    """One stored row: a metric of one trial (or, as trial -1, of all trials) of one object."""

    sample_id: str
    instance_id: str
    condition: str
    trial: int
    metric: str
    value: float
    prompt_hash: str


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """What one object is, as stored: what scores are broken down by.

    Attributes:
        sample_id: of its image.
        instance_id: of it.
        category: its class, "" where the data set names none.
        area: in pixels of the original image.
        perimeter: likewise.
    """

    sample_id: str
    instance_id: str
    category: str
    area: int
    perimeter: float


TARGET_TRIAL = -1
"""The trial of the row that holds an object's target."""


@dataclass(frozen=True, slots=True)
class MaskRow:
    """One stored mask: of a trial, or an object's target as condition "" and trial -1.

    Attributes:
        counts: COCO's compressed run lengths, of the original size.
        box: xyxy of the prompt, empty where it has none.
        points: x and y of each point of the prompt in turn.
        labels: of the points.
    """

    sample_id: str
    instance_id: str
    condition: str
    trial: int
    counts: bytes
    box: Sequence[float] = ()
    points: Sequence[float] = ()
    labels: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class PhotographRow:
    """One stored photograph, reduced, of which masks are kept.

    Attributes:
        height: of the original, in pixels.
        width: likewise.
        jpeg: the photograph, its longest side at most 1,024 pixels.
        kept: which of its masks are stored.
    """

    sample_id: str
    height: int
    width: int
    jpeg: bytes
    kept: Keep


@dataclass(frozen=True)
class Kept:
    """The masks that are kept of an image, and the image."""

    photograph: PhotographRow
    masks: Sequence[MaskRow]


@dataclass(frozen=True)
class RunManifest:
    """Everything that a run is: one protocol, one data set, one segmenter, and with what.

    Attributes:
        protocol: what `describe_protocol` says of it.
        reported: the published values of its protocol, as plain values.
        dataset: the images.
        segmenter: the model.
        n_samples: images that the run is over.
        limit: the N of `--limit N`, None where all images are taken.
        trials: the T of `--trials T`, None where the protocol decides.
        device: kind of device that predicted ("cpu", "cuda").
        constants: of the metrics, that a score depends on.
        versions: of samrobust, Python and the packages that a score depends on.
        command: what was typed.
        created: date and time, UTC, ISO 8601.
        memory_halvings: how often the number of prompts in one call was halved in the end, as
            device memory did not hold them; changes no score.
    """

    protocol: Mapping[str, Any]
    reported: Sequence[Mapping[str, Any]]
    dataset: DatasetInfo
    segmenter: SegmenterInfo
    n_samples: int
    limit: int | None
    trials: int | None
    device: str
    constants: Mapping[str, float]
    versions: Mapping[str, str]
    command: str
    created: str
    memory_halvings: int = 0
