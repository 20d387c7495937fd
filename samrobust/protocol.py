"""Load protocols from TOML files, and describe, change and hash them."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from msgspec import Meta

from samrobust.degradations import CORRUPTIONS, DEGRADATIONS, SEARCHES
from samrobust.degradations.clicks import Click
from samrobust.errors import ProtocolError
from samrobust.files import convert, errors_at, read_toml, shown
from samrobust.metrics import METRICS
from samrobust.registry import Registry, known
from samrobust.types import (
    Condition,
    Corruption,
    Degradation,
    Detections,
    EvalProtocol,
    GoesByGradient,
    ImageCondition,
    Interaction,
    Recording,
    Reported,
    Search,
    Selection,
    Turn,
)

T = TypeVar("T")

RECORDED = "recorded"
"""Kind of the conditions whose prompts are from a file, in place of a degradation's name."""
CLICK = "click"
"""Kind of the conditions whose conversation starts with a click."""
MAX_CONDITIONS = 1_000
MAX_TRIALS = 1_000
"""Per condition: the masks of all trials of an object are in memory at once."""
MAX_CLICKS = 20
"""Of a conversation (RITM, docs/sources/peers.md 1.3)."""
NOC_AT = (80, 85, 90, 95)
"""IoU in percent that clicks are counted to."""
CLICK_METRICS = (*(f"noc-{at}" for at in NOC_AT), *(f"nof-{at}" for at in NOC_AT), "click-auc")
"""Of whole conversations, by which papers report them; NoF as a fraction of the objects."""
MAX_PROMPTS = 20_000
"""Per object, over all conditions: the prompts of all objects of an image are in memory at once."""


@dataclass(frozen=True)
class _ProtocolFile:
    """The keys of a protocol file; its conditions are checked later."""

    name: str
    version: int
    summary: str
    source: str
    seed: int
    trials: Annotated[int, Meta(ge=1, le=MAX_TRIALS)]
    selection: Selection
    metrics: Annotated[tuple[str, ...], Meta(min_length=1)]
    conditions: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1, max_length=MAX_CONDITIONS)]
    images: Annotated[tuple[dict[str, Any], ...], Meta(max_length=MAX_CONDITIONS)] = ()
    reported: tuple[Reported, ...] = ()


@dataclass(frozen=True)
class _ConditionKeys:
    """The keys of a condition other than the parameters of its degradation."""

    name: str
    degradation: str
    trials: Annotated[int, Meta(ge=1, le=MAX_TRIALS)]
    level: float | None = None
    interaction: Interaction | None = None


@dataclass(frozen=True)
class _SearchKeys:
    """The keys of a condition other than the parameters of its search."""

    name: str
    search: str
    level: float | None = None


@dataclass(frozen=True)
class _ImageKeys:
    """The keys of a row of `images` other than the parameters of its corruption."""

    name: str
    corruption: str
    level: float


def packaged_protocols() -> dict[str, Path]:
    """Return name -> file of the protocols that come with the package."""
    return {file.stem: file for file in sorted(packaged_folder().glob("*.toml"))}


def packaged_folder() -> Path:
    """Return the folder of protocol files; `published/` inside has files of published values."""
    installed = Path(__file__).parent / "protocols"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "protocols"  # checkout


def load_protocol(name: str) -> EvalProtocol:
    """Return a packaged protocol by name, or a user's own by the path of its TOML file.

    Raises:
        ProtocolError: the file is missing or invalid; the message names file, condition and key.
        UnknownNameError: no packaged protocol has that name.
    """
    path = find_file(name, packaged_protocols(), kind="protocol")
    table = read_toml(path, error=ProtocolError)
    with errors_at(path.name, ProtocolError):
        return _build(table)


def find_file(name: str, packaged: Mapping[str, Path], *, kind: str) -> Path:
    """Return the path of a file that is named by a packaged name or by its path.

    Args:
        name: taken as a path if it has a slash or ends in ".toml".
        packaged: name -> file.
        kind: what the file holds, for messages ("protocol").

    Raises:
        UnknownNameError: no packaged file has that name.
    """
    is_path = name.endswith(".toml") or "/" in name
    return Path(name) if is_path else packaged[known(name, packaged, kind=kind)]


def with_trials(protocol: EvalProtocol, trials: int) -> EvalProtocol:
    """Return the protocol with another number of trials for every random condition.

    Raises:
        ProtocolError: `trials` is less than 1, more than `MAX_TRIALS`, or gives too many prompts,
            or prompts are recorded.
    """
    if any(isinstance(condition.degradation, Recording) for condition in protocol.conditions):
        raise ProtocolError(f"{protocol.name}: recorded prompts have no other number of trials")
    if trials < 1:
        raise ProtocolError(f"trials must be at least 1, got {trials}")
    if trials > MAX_TRIALS:
        raise ProtocolError(f"trials must be at most {MAX_TRIALS}, got {trials}")
    conditions = tuple(
        dataclasses.replace(condition, trials=trials if condition.is_random else 1)
        for condition in protocol.conditions
    )
    with errors_at(f"protocol {protocol.name}, {trials} trials", ProtocolError):
        _check_prompts(conditions)
    return dataclasses.replace(protocol, conditions=conditions, trials=trials)


def with_gradient(protocol: EvalProtocol) -> EvalProtocol:
    """Return the protocol with searches by gradient, of as many prompts, as NAME-by-gradient.

    Raises:
        ProtocolError: the protocol has no search, or one that gradients do not help.
    """
    where = f"protocol {protocol.name}"
    conditions = []
    for condition in protocol.conditions:
        search = condition.degradation
        if isinstance(search, Search) and not search.needs_gradients:
            if not isinstance(search, GoesByGradient):
                raise ProtocolError(
                    f"{where}: condition '{condition.name}' cannot search by gradient; allowed are "
                    "searches for boxes"
                )
            with errors_at(f"{where}: condition '{condition.name}' by gradient", ProtocolError):
                kind, by_gradient = search.by_gradient()
            condition = dataclasses.replace(condition, degradation=by_gradient, kind=kind)
        conditions.append(condition)
    if not any(isinstance(condition.degradation, Search) for condition in conditions):
        raise ProtocolError(f"{where} has no search that could go by gradient; worst-box has one")
    name = f"{protocol.name}-by-gradient"
    return dataclasses.replace(protocol, name=name, conditions=tuple(conditions))


def with_conditions(protocol: EvalProtocol, names: Sequence[str]) -> EvalProtocol:
    """Return the protocol with only the named conditions, in the protocol's order.

    A conversation is named as in the protocol's file, and comes with all of its conditions.

    Raises:
        UnknownNameError: the protocol has no condition of that name.
    """
    named = [condition_name(condition) for condition in protocol.conditions]
    for name in names:
        known(name, dict.fromkeys(named), kind="condition")
    chosen = tuple(
        condition
        for condition, name in zip(protocol.conditions, named, strict=True)
        if name in names
    )
    return dataclasses.replace(protocol, conditions=chosen)


def condition_name(condition: Condition) -> str:
    """Return the name of a condition in the protocol's file; of a turn, its conversation's."""
    return condition.name if condition.turn is None else condition.turn.conversation


def on_stored_images(protocol: EvalProtocol) -> EvalProtocol:
    """Return the protocol without its conditions on corrupted images."""
    chosen = tuple(condition for condition in protocol.conditions if condition.image is None)
    return dataclasses.replace(protocol, conditions=chosen)


def check_drawn(protocol: EvalProtocol) -> None:
    """Check that prompts are of stored images, and known before any segmenter has answered.

    Raises:
        ProtocolError: a condition is on corrupted images, searches for its prompt, or corrects a
            segmenter's answers.
    """
    if on_stored_images(protocol) != protocol:
        raise ProtocolError(
            f"protocol '{protocol.name}' has conditions on corrupted images, which only "
            "samrobust eval can make; choose a protocol without [[images]]"
        )
    for condition in protocol.conditions:
        where = f"protocol {protocol.name}: condition '{condition.name}'"
        if isinstance(condition.degradation, Search):
            raise ProtocolError(
                f"{where} searches for its prompt by asking a segmenter; only samrobust eval can "
                "run it"
            )
        if condition.turn is not None:
            raise ProtocolError(
                f"{where} has clicks that depend on a segmenter's answers; only samrobust eval can "
                "place them"
            )


def describe_protocol(protocol: EvalProtocol) -> dict[str, Any]:
    """Return everything in a protocol that can change a score, as plain JSON values."""
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
                "parameters": _parameters(condition.degradation),
                "trials": condition.trials,
                "level": condition.level,
                **({} if condition.turn is None else {"turn": dataclasses.asdict(condition.turn)}),
                **_describe_image(condition.image),
            }
            for condition in protocol.conditions
        ],
    }


def _parameters(degradation: Degradation | Recording | Search) -> dict[str, Any]:
    if isinstance(degradation, Recording):
        found = {name: getattr(degradation, name) for name in ("file", "sha256", "boxes")}
        if isinstance(degradation, Detections):
            found["min_box_iou"] = degradation.min_box_iou
        return found
    return dataclasses.asdict(degradation)  # type: ignore[call-overload, no-any-return]


def build_corruption(kind: str, parameters: Mapping[str, Any]) -> Corruption:
    """Return a corruption by name, with its parameters from a TOML table.

    Raises:
        UnknownNameError: no corruption has that name.
        ValueError: a parameter is unknown, missing or not allowed.
    """
    return _with_parameters(CORRUPTIONS, kind, parameters)


def _describe_image(image: ImageCondition | None) -> dict[str, Any]:
    """Return the key "image" of a condition on corrupted images; nothing of one on stored ones."""
    if image is None:
        return {}
    parameters = dataclasses.asdict(image.corruption)  # type: ignore[call-overload]
    described = {
        "name": image.name,
        "corruption": image.kind,
        "parameters": parameters,
        "level": image.level,
        "pixels": "of the stored image",  # that radii are in
    }
    return {"image": described}


def protocol_hash(protocol: EvalProtocol) -> str:
    """Return the SHA-256 of the JSON of `describe_protocol`, in hex."""
    text = json.dumps(describe_protocol(protocol), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def degradation_of_row(
    row: Mapping[str, Any], kind: type[T], *, where: str
) -> tuple[T, Degradation]:
    """Return the keys and the degradation of a TOML row that holds both side by side.

    Args:
        row: the table.
        kind: dataclass of the keys that are not parameters, with "degradation" among them.
        where: name of the row in messages ("condition 'box-0.4'").

    Raises:
        ValueError: a key, a parameter or the degradation is unknown, missing or not allowed.
    """
    keys, parameters = _split(row, kind, where=where)
    with errors_at(where):
        return keys, build_degradation(row["degradation"], parameters)


def _split(row: Mapping[str, Any], kind: type[T], *, where: str) -> tuple[T, dict[str, Any]]:
    """Return the keys of a row, and the parameters beside them."""
    names = set(get_type_hints(kind))
    keys = convert({key: row[key] for key in row if key in names}, kind, where=where)
    return keys, {key: row[key] for key in row if key not in names}


def build_degradation(kind: str, parameters: Mapping[str, Any]) -> Degradation:
    """Return a degradation by name, with its parameters from a TOML table.

    Raises:
        UnknownNameError: no degradation has that name.
        ValueError: a parameter is unknown, missing or not allowed.
    """
    return _with_parameters(DEGRADATIONS, kind, parameters)


def _with_parameters(registry: Registry[type[T]], kind: str, parameters: Mapping[str, Any]) -> T:
    made: T = convert(parameters, registry.load(kind), where=kind)
    # 1 and 1.0 are hashed as different texts: a number stays as the file writes it
    integers = {key: value for key, value in parameters.items() if type(value) is int}
    return dataclasses.replace(made, **integers)  # type: ignore[type-var]


def _build(table: Mapping[str, Any]) -> EvalProtocol:
    file = convert(table, _ProtocolFile, where="the protocol")
    conditions = tuple(
        condition
        for number, row in enumerate(file.conditions, start=1)
        for condition in _conditions(row, number, file.trials)
    )
    images = [_image(row, number) for number, row in enumerate(file.images, start=1)]
    conditions += tuple(_on_image(condition, image) for image in images for condition in conditions)
    if len(conditions) > MAX_CONDITIONS:
        raise ValueError(
            f"{len(conditions)} conditions of images and prompts, at most {MAX_CONDITIONS} are "
            "allowed"
        )
    _check_prompts(conditions)
    names = [condition.name for condition in conditions]
    image_names = [image.name for image in images]
    for key, values in (
        ("image", image_names),
        ("condition", names),
        ("metric", file.metrics),
    ):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ValueError(f"{key} {shown(twice[0])} is listed twice")
    for row in file.reported:
        known(row.condition, names, kind="condition in reported")
        known(row.metric, (*METRICS.names(), *CLICK_METRICS), kind="metric in reported")
        most = MAX_CLICKS if row.metric.startswith("noc-") else 1
        if not 0 <= row.value <= most:
            raise ValueError(f"a reported value must be in [0, {most}], got {row.value}")
    return EvalProtocol(
        name=file.name,
        version=file.version,
        summary=file.summary,
        source=file.source,
        seed=file.seed,
        metrics=tuple(known(metric, METRICS.names(), kind="metric") for metric in file.metrics),
        selection=file.selection,
        conditions=conditions,
        reported=file.reported,
    )


def _conditions(row: Mapping[str, Any], number: int, default_trials: int) -> list[Condition]:
    """Return the condition of a TOML table, or one for each turn of its conversation."""
    name = row.get("name")
    where = f"condition {shown(name)}" if name else f"row {number} of 'conditions'"
    if "search" in row:
        return [_searched(row, where=where)]
    row = {"trials": default_trials, **row}
    if "interaction" in row and "degradation" not in row:
        with errors_at(where):
            click = click_of(_interaction(row["interaction"]))
        row |= {"degradation": CLICK, **dataclasses.asdict(click)}
    keys, degradation = degradation_of_row(row, _ConditionKeys, where=where)
    condition = Condition(keys.name, degradation, keys.degradation, keys.trials, keys.level)
    if keys.interaction is None:
        return [dataclasses.replace(condition, trials=keys.trials if condition.is_random else 1)]
    with errors_at(where):
        return _turns(condition, _interaction(row["interaction"]))


def _turns(condition: Condition, interaction: Interaction) -> list[Condition]:
    """Return the conditions of a conversation: one after each click, and before where it can be."""
    starts_with_click = condition.kind == CLICK
    if not starts_with_click and condition.degradation.gives != {"box"}:
        kinds = " and ".join(sorted(condition.degradation.gives))
        raise ValueError(
            "an interaction starts with a box, or without a degradation with a click, got "
            f"'{condition.kind}', which gives {kinds}"
        )
    if condition.level is not None:
        raise ValueError("the level of an interaction is its number of clicks; leave it out")
    first = int(starts_with_click)
    turns = [
        dataclasses.replace(
            condition,
            name=f"{condition.name}@{n_clicks}",
            level=float(n_clicks),
            turn=Turn(condition.name, n_clicks, n_clicks == first, interaction),
        )
        for n_clicks in range(first, interaction.clicks + 1)
    ]
    return [
        dataclasses.replace(turn, trials=turn.trials if turn.is_random else 1) for turn in turns
    ]


def _interaction(table: object) -> Interaction:
    """Return the checked interaction of a TOML table; numbers stay as the file writes them."""
    where = "interaction"
    interaction = convert(table, Interaction, where=where)
    if not 1 <= interaction.clicks <= MAX_CLICKS:
        raise ValueError(
            f"{where}: clicks must be a whole number from 1 to {MAX_CLICKS}, "
            f"got {interaction.clicks}"
        )
    with errors_at(where):
        click_of(interaction)
    return interaction


def click_of(interaction: Interaction) -> Click:
    """Return where the clicks of a conversation are placed."""
    return Click(interaction.policy, interaction.gamma, interaction.group)


def _on_image(condition: Condition, image: ImageCondition) -> Condition:
    """Return a condition, or a turn of a conversation, on a corrupted image."""
    turn = condition.turn
    if turn is not None:
        conversation = f"{image.name}/{turn.conversation}"
        turn = dataclasses.replace(turn, conversation=conversation)
    name = f"{image.name}/{condition.name}"
    return dataclasses.replace(condition, name=name, image=image, turn=turn)


def _searched(row: Mapping[str, Any], *, where: str) -> Condition:
    if "degradation" in row:
        raise ValueError(f"{where}: has a degradation and a search; one is allowed")
    keys, parameters = _split(row, _SearchKeys, where=where)
    with errors_at(where):
        search = _with_parameters(SEARCHES, keys.search, parameters)
    return Condition(keys.name, search, keys.search, trials=1, level=keys.level)


def _image(row: Mapping[str, Any], number: int) -> ImageCondition:
    name = row.get("name")
    where = f"image {shown(name)}" if name else f"row {number} of 'images'"
    keys, parameters = _split(row, _ImageKeys, where=where)
    with errors_at(where):
        corruption = build_corruption(keys.corruption, parameters)
    return ImageCondition(keys.name, corruption, keys.corruption, keys.level)


def _check_prompts(conditions: Sequence[Condition]) -> None:
    n_prompts = sum(
        each.degradation.n_asked if isinstance(each.degradation, Search) else each.trials
        for each in conditions
    )
    if n_prompts > MAX_PROMPTS:
        raise ValueError(f"{n_prompts} prompts per object, at most {MAX_PROMPTS} are allowed")
