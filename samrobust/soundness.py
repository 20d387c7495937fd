"""What a stored run must say before anything else reads it: its files may be a stranger's."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from samrobust.records import RunManifest
from samrobust.settings import is_of_kind, shown

MOST_CELLS = 10**8
"""Of conditions x trials x objects of a run, unless enough of them have scores."""
CELLS_A_SCORE = 200
"""The most that a table of scores may have, as conditions have a trial or many."""
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
        ValueError: they are not, or so thinly spread that a table of them fills the memory.
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
    cells_an_object = len(conditions) * (max(found["max"], 0) + 1)
    if cells_an_object > CELLS_A_SCORE:  # or there cannot be too many: an object has a score
        n_objects = scores.group_by(["sample_id", "instance_id"]).aggregate([]).num_rows
        if cells_an_object * n_objects > max(MOST_CELLS, CELLS_A_SCORE * len(scores)):
            raise ValueError(f"{len(scores)} scores are too few for so many objects and trials")


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
