"""Recipe files: TOML in, a checked recipe out."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samrobust.datasets.files import leaves_root
from samrobust.errors import RecipeError, SamrobustError
from samrobust.protocol import build_degradation
from samrobust.registry import known
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.settings import is_of_kind, make_settings, read_table, shown
from samrobust.training.recipe import (
    Augmentation,
    DataSource,
    LossWeights,
    Phase,
    PromptSource,
    Recipe,
    Trunk,
    at_least,
)

SEEDS = 2**63
"""How many there are: torch's generators take no larger ones."""
MOST_ROWS = 1_000
"""Of phases, data or prompts."""
MOST: Mapping[str, int] = {
    "images": 4_096,
    "objects": 1_000,
    "kinds": 100,
    "side": 4_096,
    "steps": 10**9,
    "epochs": 10**6,
}
"""Of a phase: more is a slip of the pen, or fits into no memory."""


def packaged_recipes() -> dict[str, Path]:
    """Return name -> file of the recipes that come with the package."""
    folder = Path(__file__).parent / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def load_recipe(name: str, *changes: str) -> Recipe:
    """Return a recipe from a file, or from several.

    Args:
        name: of a packaged recipe, or the path of a user's own.
        changes: likewise, of files that hold some of a recipe's keys: theirs take the place of
            those that came before. Such a recipe is called by all of its names.

    Raises:
        RecipeError: a file is missing or wrong; the message names file, table and key.
        UnknownNameError: no packaged recipe has that name.
    """
    first, *others = (_read(each) for each in (name, *changes))
    merged = dict(first)
    for other in others:
        kept = {key: merged[key] for key in ("name", "version", "summary") if key in merged}
        merged |= other | kept
    if others:
        merged["name"] = "+".join(str(table.get("name")) for table in (first, *others))
    try:
        return _build(merged)
    except (SamrobustError, ValueError) as error:
        files = " + ".join(_path(each).name for each in (name, *changes))
        raise RecipeError(f"{files}: {error}") from error


def recipe_summary(name: str) -> str:
    """Return the line of a packaged recipe, or of a file that changes some of its keys.

    Raises:
        RecipeError: the file is damaged.
    """
    return str(_read(name).get("summary", ""))


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain JSON values, for the file that it makes."""
    table = dataclasses.asdict(recipe)
    for row, source in zip(table["prompts"], recipe.prompts, strict=True):
        row["degradation"] = dataclasses.asdict(source.degradation)  # type: ignore[call-overload]
    return table


def recipe_hash(recipe: Recipe) -> str:
    """Return the SHA-256 of what `describe_recipe` says."""
    text = json.dumps(describe_recipe(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _path(name: str) -> Path:
    own = name.endswith(".toml") or "/" in name
    return Path(name) if own else packaged_recipes()[known(name, packaged_recipes(), kind="recipe")]


def _read(name: str) -> dict[str, Any]:
    path = _path(name)
    try:
        return read_table(path)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error


def _build(table: Mapping[str, Any]) -> Recipe:
    built = {
        **table,
        "phases": _rows(table, "phases", _phase),
        "data": _rows(table, "data", _data),
        "prompts": _rows(table, "prompts", _prompts),
    }
    tables = {
        "loss": LossWeights,
        "augmentation": Augmentation,
        "plugins": PluginSettings,
        "trunk": Trunk,
    }
    for key, build in tables.items():
        if key in table:
            if not isinstance(table[key], dict):
                raise ValueError(f"'{key}' must be a table, opened by [{key}]")
            built[key] = make_settings(build, table[key], kind=key)
    if "models" in table:
        built["models"] = _names(table["models"])
    if "rates" in table:
        built["rates"] = _rates(table["rates"])
    recipe = make_settings(Recipe, built, kind="the recipe")
    if not any(source.weight for source in recipe.data):
        raise ValueError("no row of 'data' has a weight above 0")
    for name in ("weight_decay", "clip_norm", "judge_images"):
        at_least(name, getattr(recipe, name), 0)
    at_least("judge_every", recipe.judge_every, 1)
    if not 0 <= recipe.seed < SEEDS:
        raise ValueError(f"seed must be in [0, 2**63), got {recipe.seed}")
    for name in ("average", "corrections"):
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(recipe, name)}")
    return recipe


def _names(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
        raise ValueError("'models' must be a list of names")
    return tuple(found)


def _rates(found: object) -> dict[str, float]:
    if not isinstance(found, dict) or not all(is_of_kind(x, float) for x in found.values()):
        raise ValueError("'rates' must be a table of numbers, opened by [rates]")
    for name, rate in found.items():
        at_least(f"the rate of {name}", rate, 0)
    return found


def _rows(table: Mapping[str, Any], key: str, build: Any) -> tuple[Any, ...]:  # noqa: ANN401
    rows = table.get(key)
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"'{key}' must be a list of tables, each opened by [[{key}]]")
    if len(rows) > MOST_ROWS:
        raise ValueError(f"'{key}' has {len(rows)} tables, more than {MOST_ROWS}")
    return tuple(build(row) for row in rows)


def _phase(row: Mapping[str, Any]) -> Phase:
    phase = make_settings(Phase, row, kind="a phase")
    for name, most in MOST.items():
        if getattr(phase, name) > most:
            raise ValueError(f"a phase: {name} must be at most {most}, got {row[name]}")
    return phase


def _data(row: Mapping[str, Any]) -> DataSource:
    source = make_settings(DataSource, row, kind="data")
    for name in ("folder", "split"):
        if leaves_root(getattr(source, name)):
            raise ValueError(f"data: {name} {shown(row[name])} leaves the data root")
    return source


def _prompts(row: Mapping[str, Any]) -> PromptSource:
    parameters = dict(row)
    weight, kind = parameters.pop("weight", None), parameters.pop("degradation", None)
    if not is_of_kind(weight, float) or weight <= 0 or not isinstance(kind, str):
        raise ValueError("each row of 'prompts' needs a degradation and a weight above 0")
    return PromptSource(float(weight), kind, build_degradation(kind, parameters))
