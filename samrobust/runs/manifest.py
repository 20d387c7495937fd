"""What a run is: its rows, its `manifest.json`, and a name made of all that can change a number."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from samrobust import files
from samrobust.errors import RunError
from samrobust.files import convert, errors_at, shown, write_atomic
from samrobust.metrics import bounds_of
from samrobust.types import DatasetInfo, Keep, Reported, SegmenterInfo, Turn


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
        supercategory: the group of classes that it is of, "" where the data set names none.
        others: objects of the image whose tight box has its centre in this one's; -1 where that is
            not known.
        image_side: the longer side of the image, in pixels; 0 where that is not known.
    """

    sample_id: str
    instance_id: str
    category: str
    area: int
    perimeter: float
    supercategory: str = ""
    others: int = -1
    image_side: int = 0


@dataclass(frozen=True, slots=True)
class QualityRow:
    """What a segmenter says of its own mask for one prompt.

    Attributes:
        quality: its estimate of the IoU of the mask that is scored, as it gives it; 0 from a
            segmenter that has none.
        gap: IoU with the target of the best candidate, less that of the candidate of the highest
            quality; None where there is one candidate.
    """

    sample_id: str
    instance_id: str
    condition: str
    trial: int
    quality: float
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class RaterRow:
    """Who gave a recorded prompt, as stored.

    Attributes:
        rater: "" if unknown.
        loss: complete-IoU loss of its box to the tight one, None where it has none.
    """

    sample_id: str
    instance_id: str
    condition: str
    trial: int
    rater: str
    loss: float | None


@dataclass(frozen=True, slots=True)
class SearchRow:
    """What the search for the worst prompt of an object found.

    Attributes:
        condition: the first of its protocol that takes a prompt of the search.
        worst: IoU of the prompt with the lowest.
        exact: of the exact prompt.
        best: the highest.
        percentile: human percentile of the prompt of lowest IoU.
        breaks_at: lowest human percentile of a prompt of IoU below 0.5, None where there is none.
        n_asked: prompts that the segmenter was asked.
    """

    sample_id: str
    instance_id: str
    condition: str
    worst: float
    exact: float
    best: float
    percentile: float
    breaks_at: float | None
    n_asked: int


@dataclass(frozen=True, slots=True)
class DetectionRow:
    """The mask of one box of a detector.

    Attributes:
        category_id: of the detector.
        score: likewise.
        quality: the segmenter's estimate of the mask's IoU.
        bbox: x, y, width and height as the detector gave them.
        counts: COCO's compressed run lengths of the mask.
    """

    sample_id: str
    number: int
    category_id: int
    score: float
    quality: float
    bbox: Sequence[float]
    counts: bytes


@dataclass(frozen=True, slots=True)
class TargetRow:
    """One annotation of an image whose detections are stored; as `samrobust.types.Target`."""

    sample_id: str
    instance_id: str
    category_id: int
    area: float
    is_crowd: bool
    counts: bytes
    height: int
    width: int
    frequency: str
    negatives: Sequence[int]
    not_exhaustive: Sequence[int]


@dataclass(frozen=True)
class Detected:
    """What is stored of an image for average precision."""

    detections: Sequence[DetectionRow]
    targets: Sequence[TargetRow]


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
        file_name: of the original, "" where it is of no file.
    """

    sample_id: str
    height: int
    width: int
    jpeg: bytes
    kept: Keep
    file_name: str = ""


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
        n_objects_left_out: objects that had nothing to score, so far; `left-out*.json` says which
            and why. Runs of 0.1.0 do not say it.
    """

    protocol: Mapping[str, Any]
    reported: Sequence[Mapping[str, Any]]
    dataset: DatasetInfo
    segmenter: SegmenterInfo
    n_samples: int
    limit: int | None
    trials: int | None
    device: str
    constants: Mapping[str, int | float]
    versions: Mapping[str, str]
    command: str
    created: str
    memory_halvings: int = 0
    n_objects_left_out: int = 0


MAX_PIXELS = 2**28
"""Of a stored photograph, as it was."""


def check_failures(plain: Mapping[str, Any]) -> None:
    """Check the failures of a run: sample ids and reasons.

    Raises:
        ValueError: a reason is no text.
    """
    convert(plain, dict[str, str], where="the failures")


def check_scores(scores: pa.Table, manifest: RunManifest) -> None:
    """Check that the scores of a run are of its protocol.

    Raises:
        ValueError: they are not.
    """
    if len(scores) == 0:
        return
    _check_filled(scores)
    conditions = manifest.protocol["conditions"]
    allowed = {
        "condition": [row["name"] for row in conditions],
        "metric": manifest.protocol["metrics"],
    }
    for column, names in allowed.items():
        others = set(pc.unique(scores[column]).to_pylist()).difference(names)
        if others:
            raise ValueError(f"the {column} {shown(min(others))} is not in its protocol")
    trials = max(row["trials"] for row in conditions)
    found = pc.min_max(scores["trial"]).as_py()
    if found["min"] < -1 or found["max"] >= trials:
        raise ValueError(f"trials {found['min']} to {found['max']} are not those of its protocol")
    _check_values(scores)


SCORE_KEY = ("sample_id", "instance_id", "condition", "trial", "metric")
"""Columns of which no two scores of a run have the same values."""
_SLACK = 1e-6
"""Of a bound: values are stored with 24 bits."""


def score_name(scores: pa.Table, place: int) -> str:
    """Return which score a row of a table holds, for messages."""
    image, instance, condition, trial, metric = (scores[name][place].as_py() for name in SCORE_KEY)
    of = "all trials" if trial < 0 else f"trial {trial}"
    return (
        f"{metric} of image {shown(image)}, object {shown(instance)}, condition {condition}, {of}"
    )


def _check_values(scores: pa.Table) -> None:
    """Check that all values are finite and in the range of their metrics.

    Raises:
        ValueError: one is not; the message names it.
    """
    values = scores["value"]
    finite = pc.is_finite(values)
    if not pc.all(finite).as_py():
        place = pc.index(finite, value=False).as_py()
        raise ValueError(f"a value is not finite: {score_name(scores, place)}")
    coded = scores["metric"].combine_chunks()
    if not pa.types.is_dictionary(coded.type):
        coded = coded.dictionary_encode()
    lows, highs = np.array([bounds_of(name) for name in coded.dictionary.to_pylist()]).T
    lows, highs = lows - _SLACK, highs + _SLACK
    found = pc.min_max(values).as_py()
    if found["min"] >= lows.max() and found["max"] <= highs.min():
        return  # whatever their metrics are
    codes, numbers = coded.indices.to_numpy(), values.to_numpy()
    outside = (numbers < lows[codes]) | (numbers > highs[codes])
    if outside.any():
        place = int(outside.argmax())
        low, high = bounds_of(scores["metric"][place].as_py())
        raise ValueError(
            f"a value must be in [{low:g}, {high:g}], got {numbers[place]:g}: "
            f"{score_name(scores, place)}"
        )


def check_objects(objects: pa.Table) -> None:
    """Check what a run says of its objects.

    Raises:
        ValueError: an area or a perimeter is none.
    """
    _check_filled(objects)
    areas, perimeters = objects["area"], objects["perimeter"]
    valid = pc.and_(pc.greater(areas, 0), pc.is_finite(perimeters))
    if not pc.all(pc.and_(valid, pc.greater(perimeters, 0)), min_count=0).as_py():
        raise ValueError("an area or a perimeter is not above 0")


def check_photographs(photographs: pa.Table) -> None:
    """Check the sizes of photographs, which masks are then made of.

    Raises:
        ValueError: one is empty, or larger than any that can be read.
    """
    _check_filled(photographs)
    for height, width in zip(
        photographs["height"].to_pylist(), photographs["width"].to_pylist(), strict=True
    ):
        if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
            raise ValueError(f"a photograph cannot be {width}x{height}")


def _check_filled(table: pa.Table) -> None:
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"the column {name} has gaps")


MIN_BOX_IOU = "min_box_iou"
"""Parameter of the conditions whose prompts are the boxes of a detector."""
FORMAT = 1
MANIFEST = "manifest.json"
SCORES_VERSION = "0.1.0"
"""The last version of samrobust that changed a score; later ones resume its runs."""
_NOT_IDENTITY = ("command", "created", "reported", "memory_halvings", "n_objects_left_out")


def run_name(manifest: RunManifest) -> str:
    """Return the folder name of a run: what it is, then a hash of all that can change a number.

    Not in the hash: when and how it was started, whether its prompts fitted into memory, the
    published values shown beside it, the name of the folder that the data lie in, what the
    segmenter was trained on, which its weights say, and the version of samrobust, for which
    `SCORES_VERSION` stands.
    """
    identity = {k: v for k, v in _to_plain(manifest).items() if k not in _NOT_IDENTITY}
    identity["versions"] |= {"samrobust": SCORES_VERSION}
    identity["dataset"].pop("folder")
    identity["segmenter"].pop("trained_on")
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    dataset = manifest.dataset
    images = (
        dataset.key
        if dataset.folder in ("", dataset.name)
        else f"{dataset.key} in {dataset.folder}"
    )
    words = [manifest.protocol["name"], images, manifest.segmenter.label, digest]
    return "--".join(re.sub(r"[^A-Za-z0-9._]+", "-", word) for word in words)


def run_folder(results: Path, manifest: RunManifest) -> Path:
    """Return the folder of a run: one that ends with its hash, else a new one by its whole name.

    So a run is found whatever its data lie in, and those of versions that did not name that.
    """
    name = run_name(manifest)
    stored = sorted(results.glob(f"*--{name.rpartition('--')[2]}"))
    return stored[0] if stored else results / name


def read_manifest(folder: Path) -> RunManifest:
    """Return what a stored run is.

    Raises:
        RunError: the folder is no run, or its manifest cannot be read.
    """
    path = folder / MANIFEST
    plain = read_json(path)
    if plain.get("format", FORMAT) != FORMAT:
        raise RunError(f"{path}: is of another format than {FORMAT}")
    with errors_at(f"{path}: is not the manifest of a run", RunError):
        manifest = convert(plain, RunManifest, where="the manifest", ignore_unknown=True)
        _check_protocol(manifest)
        return manifest


def has_detections(manifest: RunManifest) -> bool:
    """Return whether the prompts of a run are the boxes of a detector."""
    return any(MIN_BOX_IOU in row["parameters"] for row in manifest.protocol["conditions"])


def has_turns(manifest: RunManifest) -> bool:
    """Return whether conditions of a run are turns of a conversation."""
    return any("turn" in row for row in manifest.protocol["conditions"])


def write_manifest(folder: Path, manifest: RunManifest) -> None:
    """Store what a run is, atomically.

    Raises:
        RunError: it cannot be written.
    """
    write_json(folder / MANIFEST, _to_plain(manifest))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file of a run.

    Raises:
        RunError: it cannot be read, or is another thing.
    """
    return files.read_json(path, error=RunError)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write an object as JSON, atomically.

    Raises:
        RunError: it cannot be written.
    """
    content = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    try:
        write_atomic(path, content)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror}; what was stored before is kept, "
            "the same command goes on from there"
        ) from error


def _to_plain(manifest: RunManifest) -> dict[str, Any]:
    plain = dataclasses.asdict(manifest)
    prompts = manifest.segmenter.prompts
    if not has_turns(manifest):  # the run gave no masks, as those of versions without them
        prompts -= {"mask"}
    plain["segmenter"]["prompts"] = sorted(prompts)
    if not manifest.dataset.settings:  # as in the manifests of versions without them
        plain["dataset"].pop("settings")
    if not manifest.n_objects_left_out:
        plain.pop("n_objects_left_out")
    return {"format": FORMAT, **plain}


@dataclass(frozen=True)
class _StoredImage:
    name: str
    corruption: str
    level: float


@dataclass(frozen=True)
class _StoredCondition:
    name: str
    degradation: str
    parameters: Mapping[str, str | int | float | bool | None]
    trials: Annotated[int, Meta(ge=1)]
    level: float | None
    turn: Turn | None = None
    image: _StoredImage | None = None


@dataclass(frozen=True)
class _StoredProtocol:
    """What a report reads of the protocol in a manifest."""

    name: str
    version: int
    seed: int
    selection: str
    metrics: tuple[str, ...]
    conditions: Annotated[tuple[_StoredCondition, ...], Meta(min_length=1)]


def _check_protocol(manifest: RunManifest) -> None:
    protocol = convert(manifest.protocol, _StoredProtocol, where="protocol", ignore_unknown=True)
    reported = convert(manifest.reported, list[Reported], where="reported", ignore_unknown=True)
    names = {condition.name for condition in protocol.conditions}
    if len(names) < len(protocol.conditions):
        raise ValueError("two conditions have the same name")
    if not {row.condition for row in reported} <= names:
        raise ValueError("a reported value is of a condition that is not there")
    for condition in protocol.conditions:
        if type(condition.parameters.get("count", 1)) is not int:
            raise ValueError("a count of points must be a whole number")
