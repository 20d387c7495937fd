"""Protocol files: TOML in, a checked list of conditions out."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samrobust.degradations import DEGRADATIONS
from samrobust.errors import ProtocolError, SamrobustError
from samrobust.files import WORDS, build_from, is_of_kind, make_settings, shown
from samrobust.metrics import METRICS
from samrobust.registry import known, one_of
from samrobust.types import Condition, Degradation, EvalProtocol, Reported, Selection

MOST_CONDITIONS = 1_000
MOST_TRIALS = 1_000
"""Of a condition: the masks of all its trials of one object are in memory at once."""
MOST_PROMPTS = 20_000
"""Of an object, over all conditions: those of all objects of an image are in memory at once."""

_PROTOCOL_KEYS = {
    "name": str,
    "version": int,
    "summary": str,
    "source": str,
    "seed": int,
    "trials": int,
    "selection": str,
    "metrics": list,
    "conditions": list,
    "reported": list,
}
_REPORTED_KEYS = {
    "segmenter": str,
    "dataset": str,
    "condition": str,
    "metric": str,
    "value": float,
    "source": str,
}


def packaged_protocols() -> dict[str, Path]:
    """Return name -> file of the protocols that come with the package."""
    return {file.stem: file for file in sorted(packaged_folder().glob("*.toml"))}


def packaged_folder() -> Path:
    """Return the folder of the protocols, which has those of published values in `published/`."""
    inside = Path(__file__).parent / "protocols"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "protocols"  # a checkout


def load_protocol(name: str) -> EvalProtocol:
    """Return a packaged protocol by its name, or a user's own by the path of its file.

    Raises:
        ProtocolError: the file is missing or wrong; the message names file, condition and key.
        UnknownNameError: no packaged protocol has that name.
    """
    if name.endswith(".toml") or "/" in name:
        return build_from(Path(name), _build, error=ProtocolError)
    packaged = packaged_protocols()
    path = packaged[known(name, packaged, kind="protocol")]
    return build_from(path, _build, error=ProtocolError)


def with_trials(protocol: EvalProtocol, trials: int) -> EvalProtocol:
    """Return the protocol with another number of trials for every random condition.

    Raises:
        ProtocolError: `trials` is less than 1, or more than there can be.
    """
    if trials < 1:
        raise ProtocolError(f"trials must be at least 1, got {trials}")
    if trials > MOST_TRIALS:
        raise ProtocolError(f"trials must be at most {MOST_TRIALS}, got {trials}")
    conditions = tuple(
        dataclasses.replace(condition, trials=trials if condition.degradation.is_random else 1)
        for condition in protocol.conditions
    )
    try:
        _check_prompts(conditions)
    except ValueError as error:
        raise ProtocolError(f"protocol {protocol.name}, {trials} trials: {error}") from error
    return dataclasses.replace(protocol, conditions=conditions, trials=trials)


def with_conditions(protocol: EvalProtocol, names: Sequence[str]) -> EvalProtocol:
    """Return the protocol with some of its conditions, in its own order.

    Raises:
        UnknownNameError: it has no such condition.
    """
    for name in names:
        known(name, [each.name for each in protocol.conditions], kind="condition")
    chosen = tuple(each for each in protocol.conditions if each.name in names)
    return dataclasses.replace(protocol, conditions=chosen)


def describe_protocol(protocol: EvalProtocol) -> dict[str, Any]:
    """Return all of a protocol that can change a score, as plain JSON values."""
    return {
        "name": protocol.name,
        "version": protocol.version,
        "seed": protocol.seed,
        "selection": protocol.selection,
        "metrics": list(protocol.metrics),
        "conditions": [
            {
                "name": condition.name,
                "degradation": condition.kind,
                "parameters": dataclasses.asdict(condition.degradation),  # type: ignore[call-overload]
                "trials": condition.trials,
                "level": condition.level,
            }
            for condition in protocol.conditions
        ],
    }


def protocol_hash(protocol: EvalProtocol) -> str:
    """Return the SHA-256 of what `describe_protocol` says."""
    text = json.dumps(describe_protocol(protocol), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def build_degradation(kind: str, parameters: Mapping[str, Any]) -> Degradation:
    """Return a degradation by its name, its fields filled from a TOML table.

    Raises:
        UnknownNameError: there is no such degradation.
        ValueError: a parameter is unknown, missing or not allowed.
    """
    return make_settings(DEGRADATIONS.load(kind), parameters, kind=kind)


def _build(table: Mapping[str, Any]) -> EvalProtocol:
    table = {"reported": [], **table}
    _check_keys(table, _PROTOCOL_KEYS)
    for key in ("conditions", "reported"):
        if not all(isinstance(row, dict) for row in table[key]):
            raise ValueError(f"'{key}' must be a list of tables, each opened by [[{key}]]")
    if len(table["conditions"]) > MOST_CONDITIONS:
        raise ValueError(f"{len(table['conditions'])} conditions are more than {MOST_CONDITIONS}")
    conditions = tuple(_condition(row, table["trials"]) for row in table["conditions"])
    _check_prompts(conditions)
    names = [condition.name for condition in conditions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"condition '{twice[0]}' stands there twice")
    for key in ("metrics", "conditions"):
        if not table[key]:
            raise ValueError(f"'{key}' must not be empty")
    if not all(isinstance(metric, str) for metric in table["metrics"]):
        raise ValueError("'metrics' must be a list of text")
    if len(set(table["metrics"])) < len(table["metrics"]):
        raise ValueError("'metrics' names one twice")
    return EvalProtocol(
        name=table["name"],
        version=table["version"],
        summary=table["summary"],
        source=table["source"],
        seed=table["seed"],
        metrics=tuple(known(metric, METRICS.names(), kind="metric") for metric in table["metrics"]),
        selection=one_of(Selection, table["selection"], kind="selection"),
        conditions=conditions,
        reported=tuple(_reported(row, names) for row in table["reported"]),
    )


def _condition(row: dict[str, Any], default_trials: int) -> Condition:
    parameters = dict(row)
    name, kind = parameters.pop("name", None), parameters.pop("degradation", None)
    if not (isinstance(name, str) and isinstance(kind, str)):
        raise ValueError("each condition needs a name and a degradation, both text")
    try:
        trials = parameters.pop("trials", default_trials)
        level = parameters.pop("level", None)
        if not is_of_kind(trials, int) or trials < 1:
            raise ValueError(f"trials must be a whole number of at least 1, got {shown(trials)}")
        if trials > MOST_TRIALS:
            raise ValueError(f"trials must be at most {MOST_TRIALS}, got {trials}")
        if level is not None and not is_of_kind(level, float):
            raise ValueError(f"level must be a number, got {shown(level)}")
        degradation = build_degradation(kind, parameters)
    except (SamrobustError, ValueError) as error:
        raise ValueError(f"condition '{name}': {error}") from error
    return Condition(
        name=name,
        degradation=degradation,
        kind=kind,
        trials=trials if degradation.is_random else 1,
        level=None if level is None else float(level),
    )


def _reported(row: dict[str, Any], conditions: list[str]) -> Reported:
    _check_keys(row, _REPORTED_KEYS)
    known(row["condition"], conditions, kind="condition in reported")
    known(row["metric"], METRICS.names(), kind="metric in reported")
    if not 0 <= row["value"] <= 1:
        raise ValueError(f"a reported value must be in [0, 1], got {row['value']}")
    return Reported(**row)


def _check_keys(table: Mapping[str, Any], keys: Mapping[str, type]) -> None:
    for key in table:
        known(key, keys, kind="key")
    for key, kind in keys.items():
        if key not in table:
            raise ValueError(f"the key '{key}' is missing")
        if not is_of_kind(table[key], kind):
            raise ValueError(f"'{key}' must be {WORDS[kind]}, got {shown(table[key])}")


def _check_prompts(conditions: Sequence[Condition]) -> None:
    n_prompts = sum(condition.trials for condition in conditions)
    if n_prompts > MOST_PROMPTS:
        raise ValueError(f"{n_prompts} prompts an object are more than {MOST_PROMPTS}")
