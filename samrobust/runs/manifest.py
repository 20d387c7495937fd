"""What a run is: its rows, its `manifest.json`, and a name made of all that can change a number."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from samrobust.errors import RunError
from samrobust.files import is_of_kind, shown, write_whole
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


MOST_PIXELS = 2**28
"""Of a stored photograph, as it was."""

_Shape = Any
"""A check of a value, a list with the shape of its members, or a table of shapes by key."""


def _text(value: object) -> bool:
    return isinstance(value, str) and value.encode(errors="replace") == value.encode(
        errors="surrogatepass"
    )


def _of(kind: type) -> Callable[[object], bool]:
    return lambda value: is_of_kind(value, kind)


def _or_none(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


def _named(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, dict) and all(_text(key) and check(each) for key, each in value.items())
    )


def _at_least_one(value: object) -> bool:
    return isinstance(value, int) and is_of_kind(value, int) and value >= 1


def _scalar(value: object) -> bool:
    return _text(value) or isinstance(value, bool) or is_of_kind(value, float)


_WHOLE, _NUMBER, _FLAG = _of(int), _of(float), _of(bool)
_CONDITION = {
    "name": _text,
    "degradation": _text,
    "parameters": _named(_scalar),
    "trials": _at_least_one,
    "level": _or_none(_NUMBER),
}
_REPORTED = {
    "segmenter": _text,
    "dataset": _text,
    "condition": _text,
    "metric": _text,
    "value": _NUMBER,
    "source": _text,
}
_MANIFEST = {
    "protocol": {
        "name": _text,
        "version": _WHOLE,
        "seed": _WHOLE,
        "selection": _text,
        "metrics": [_text],
        "conditions": [_CONDITION],
    },
    "reported": [_REPORTED],
    "dataset": {
        "name": _text,
        "split": _text,
        "fingerprint": _text,
        "folder": _text,
        "group": _text,
        "group_members": [_text],
        "part": _text,
    },
    "segmenter": {
        "name": _text,
        "prompts": [_text],
        "variant": _text,
        "frame": _or_none(_text),
        "dtype": _text,
        "multimask": _FLAG,
        "is_control": _FLAG,
        "checkpoint_sha256": _text,
        "settings": _named(_scalar),
        "trained_on": [_text],
    },
    "n_samples": _WHOLE,
    "limit": _or_none(_WHOLE),
    "trials": _or_none(_WHOLE),
    "device": _text,
    "constants": _named(_NUMBER),
    "versions": _named(_text),
    "command": _text,
    "created": _text,
    "memory_halvings": _WHOLE,
}
_NOT_IN_EARLIER = ("folder", "part", "trained_on", "memory_halvings")


def check_manifest(plain: Mapping[str, Any]) -> None:
    """Check a manifest, as JSON has it.

    Raises:
        ValueError: a value is missing or of another kind; the message says which.
    """
    _check(_MANIFEST, plain, "the manifest")
    names = [condition["name"] for condition in plain["protocol"]["conditions"]]
    if not names or len(set(names)) < len(names):
        raise ValueError("the names of the conditions must be there, and differ")
    if not {row["condition"] for row in plain["reported"]} <= set(names):
        raise ValueError("a reported value is of a condition that is not there")
    counts = [row["parameters"].get("count", 1) for row in plain["protocol"]["conditions"]]
    if not all(map(_WHOLE, counts)):
        raise ValueError("a count of points must be a whole number")


def check_failures(plain: Mapping[str, Any]) -> None:
    """Check the failures of a run: sample ids and reasons.

    Raises:
        ValueError: a reason is no text.
    """
    if not _named(_text)(plain):
        raise ValueError("a reason must be text")


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
    if not pc.all(pc.is_finite(scores["value"])).as_py():
        raise ValueError("a value is not finite")


def check_objects(objects: pa.Table) -> None:
    """Check what a run says of its objects.

    Raises:
        ValueError: an area or a perimeter is none.
    """
    _check_filled(objects)
    areas, perimeters = objects["area"], objects["perimeter"]
    sound = pc.and_(pc.greater(areas, 0), pc.is_finite(perimeters))
    if not pc.all(pc.and_(sound, pc.greater(perimeters, 0)), min_count=0).as_py():
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
        if not (height > 0 and width > 0 and height * width <= MOST_PIXELS):
            raise ValueError(f"a photograph cannot be {width}x{height}")


def _check_filled(table: pa.Table) -> None:
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"the column {name} has gaps")


def _check(shape: _Shape, value: object, where: str) -> None:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a table, got {shown(value)}")
        for key, inner in shape.items():
            if key in value:
                _check(inner, value[key], key)
            elif key not in _NOT_IN_EARLIER:
                raise ValueError(f"{where} lacks '{key}'")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, got {shown(value)}")
        for each in value:
            _check(shape[0], each, where)
    elif not shape(value):
        raise ValueError(f"{where} cannot be {shown(value)}")


FORMAT = 1
MANIFEST = "manifest.json"
_NOT_IDENTITY = ("command", "created", "reported", "memory_halvings")


def run_name(manifest: RunManifest) -> str:
    """Return the folder name of a run: what it is, then a hash of all that can change a number.

    Not in the hash: when and how it was started, whether its prompts fitted into memory, the
    published values shown beside it, the name of the folder that the data lie in, and what the
    segmenter was trained on, which its weights say.
    """
    identity = {k: v for k, v in _to_plain(manifest).items() if k not in _NOT_IDENTITY}
    identity["dataset"].pop("folder")
    identity["segmenter"].pop("trained_on")
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    words = [manifest.protocol["name"], manifest.dataset.key, manifest.segmenter.label, digest]
    return "--".join(re.sub(r"[^A-Za-z0-9._]+", "-", word) for word in words)


def read_manifest(folder: Path) -> RunManifest:
    """Return what a stored run is.

    Raises:
        RunError: the folder is no run, or its manifest cannot be read.
    """
    path = folder / MANIFEST
    plain = read_json(path)
    try:
        if plain.pop("format") != FORMAT:
            raise RunError(f"{path}: is of another format than {FORMAT}")
        check_manifest(plain)
        segmenter = plain.pop("segmenter")
        segmenter["prompts"] = frozenset(segmenter["prompts"])
        segmenter["trained_on"] = tuple(segmenter.get("trained_on", ()))
        dataset = plain.pop("dataset")
        dataset["group_members"] = tuple(dataset["group_members"])
        return RunManifest(
            segmenter=SegmenterInfo(**segmenter), dataset=DatasetInfo(**dataset), **plain
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: is not the manifest of a run: {error}") from error


def write_manifest(folder: Path, manifest: RunManifest) -> None:
    """Store what a run is, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    write_json(folder / MANIFEST, _to_plain(manifest))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        RunError: it cannot be read, or is another thing.
    """
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: is not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise RunError(f"{path}: is not a JSON object")
    return plain


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write an object as JSON, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    content = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    try:
        write_whole(path, content)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written: {error.strerror}; what was stored before is kept, "
            "the same command goes on from there"
        ) from error


def _to_plain(manifest: RunManifest) -> dict[str, Any]:
    plain = dataclasses.asdict(manifest)
    plain["segmenter"]["prompts"] = sorted(manifest.segmenter.prompts)
    return {"format": FORMAT, **plain}
