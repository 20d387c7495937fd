"""Recipes: all of a training that can change its result, as a TOML file."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from samrobust.errors import RecipeError, SamrobustError
from samrobust.interfaces import Degradation
from samrobust.protocol import build_degradation
from samrobust.registry import known, one_of
from samrobust.settings import is_of_kind, make_settings, read_table

Source = Literal["data", "ellipses"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training: so many steps of one kind.

    Attributes:
        name: for the log.
        steps: of the optimiser.
        images: in a step, over all processes.
        objects: of an image that are prompted, at most.
        side: pixels of the square input, a multiple of 32; 0 for the model's own.
        learning_rate: at the start, after the warm-up.
        last_learning_rate: at the end; between them half a cosine.
        warmup: steps in which the learning rate rises from 0.
        source: "data", the recipe's data sets, or "ellipses": drawn masks without an image, behind
            noise in the place of an embedding, from which a decoder learns where boxes and points
            are (facts/sam-nano.md).
    """

    name: str
    steps: int
    images: int
    objects: int
    learning_rate: float
    last_learning_rate: float = 0.0
    warmup: int = 0
    side: int = 0
    source: str = "data"

    def __post_init__(self) -> None:
        for name in ("steps", "images", "objects"):
            _at_least(name, getattr(self, name), 1)
        for name in ("learning_rate", "last_learning_rate", "warmup"):
            _at_least(name, getattr(self, name), 0)
        if self.side % 32 or self.side < 0:
            raise ValueError(f"side must be a multiple of 32, got {self.side}")
        one_of(Source, self.source, kind="source")


@dataclass(frozen=True)
class DataSource:
    """A data set to learn from.

    Attributes:
        dataset: as registered.
        weight: how often it is drawn from, against the others; 0 for never.
        folder: its root inside the folder that is given with the command; "" where it has none.
        split: part of it.
        held_out: share of its images, chosen by a hash of their ids, that is never trained on and
            judged instead.
    """

    dataset: str
    weight: float
    folder: str = ""
    split: str = ""
    held_out: float = 0.0

    def __post_init__(self) -> None:
        _at_least("weight", self.weight, 0)
        if not 0 <= self.held_out <= 1:
            raise ValueError(f"held_out must be in [0, 1], got {self.held_out}")


@dataclass(frozen=True)
class PromptSource:
    """A kind of prompt to learn from.

    Attributes:
        weight: how often it is drawn, against the others.
        kind: name of the degradation.
        degradation: what draws it.
    """

    weight: float
    kind: str
    degradation: Degradation


@dataclass(frozen=True)
class LossWeights:
    """What is minimised: a weighted sum, for one prompt.

    Differs: SAM's focal and Dice losses are 20 to 1 with gamma 2 and alpha 0.25 (Kirillov et al.
    2023, app. A). Plain cross-entropy has a larger gradient while all is still wrong, which is most
    of a short training from nothing (the weights of facts/sam-nano.md).

    Attributes:
        cross_entropy: of the pixels.
        focal_gamma: how much less well-classified pixels count; 0 is plain cross-entropy.
        dice: 1 - Dice coefficient of the soft mask.
        quality: squared error of the predicted IoU.
    """

    cross_entropy: float = 2.0
    focal_gamma: float = 0.0
    dice: float = 1.0
    quality: float = 1.0

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            _at_least(field_.name, getattr(self, field_.name), 0)


@dataclass(frozen=True)
class Augmentation:
    """How photographs are varied.

    Attributes:
        least_crop: least side of a crop, as a fraction of the image's.
        flip: share of crops that are mirrored.
        colour: how far brightness, contrast and each channel swing, as a fraction.
        grey: share of crops without colour.
    """

    least_crop: float = 0.4
    flip: float = 0.5
    colour: float = 0.25
    grey: float = 0.1

    def __post_init__(self) -> None:
        for name in ("least_crop", "flip", "colour", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class Recipe:
    """A training.

    Attributes:
        name: of the recipe.
        version: raised whenever a number changes.
        model: what is trained.
        summary: one line.
        seed: of the weights and of every draw.
        weight_decay: of AdamW.
        clip_norm: the gradient's norm is cut to it.
        average: decay of the moving average of the weights, which is what is judged and kept.
        corrections: share of the steps in which every prompt gets one more point, drawn from where
            the first answer was wrong (Kirillov et al. 2023, app. A).
        judge_every: steps between two looks at held-out images; one more comes at the end.
        judge_images: held-out images of a data set in a look.
        phases: one after the other.
        data: at least one, each `weight` >= 0.
        prompts: at least one.
        loss: of one prompt.
        augmentation: of the images.
    """

    name: str
    version: int
    model: str
    summary: str
    seed: int
    weight_decay: float
    clip_norm: float
    average: float
    corrections: float
    judge_every: int
    judge_images: int
    phases: tuple[Phase, ...]
    data: tuple[DataSource, ...]
    prompts: tuple[PromptSource, ...]
    loss: LossWeights = field(default_factory=LossWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def n_steps(self) -> int:
        """Return the steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[Phase, int]:
        """Return the phase of a step, counted from 0, and its step within that phase."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise IndexError(f"the recipe has {self.n_steps} steps")


def lengthened(recipe: Recipe, factor: float) -> Recipe:
    """Return a recipe with `factor` times the steps of every phase, warm-ups as they are.

    Raises:
        RecipeError: the factor is not a number above 0.
    """
    if not 0 < factor < math.inf:
        raise RecipeError(f"a recipe can be made longer by a factor above 0, got {factor}")
    phases = tuple(
        dataclasses.replace(phase, steps=max(1, round(factor * phase.steps)))
        for phase in recipe.phases
    )
    return dataclasses.replace(recipe, phases=phases)


def packaged_recipes() -> dict[str, Path]:
    """Return name -> file of the recipes that come with the package."""
    folder = Path(__file__).parent / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def load_recipe(name: str) -> Recipe:
    """Return a packaged recipe by its name, or a user's own by the path of its file.

    Raises:
        RecipeError: the file is missing or wrong; the message names file, table and key.
        UnknownNameError: no packaged recipe has that name.
    """
    own = name.endswith(".toml") or "/" in name
    path = Path(name) if own else packaged_recipes()[known(name, packaged_recipes(), kind="recipe")]
    try:
        table = read_table(path)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error
    try:
        return _build(table)
    except (SamrobustError, ValueError) as error:
        raise RecipeError(f"{path.name}: {error}") from error


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


def _build(table: Mapping[str, Any]) -> Recipe:
    built = {
        **table,
        "phases": _rows(table, "phases", lambda row: make_settings(Phase, row, kind="a phase")),
        "data": _rows(table, "data", lambda row: make_settings(DataSource, row, kind="data")),
        "prompts": _rows(table, "prompts", _prompts),
    }
    for key, build in (("loss", LossWeights), ("augmentation", Augmentation)):
        if key in table:
            if not isinstance(table[key], dict):
                raise ValueError(f"'{key}' must be a table, opened by [{key}]")
            built[key] = make_settings(build, table[key], kind=key)
    recipe = make_settings(Recipe, built, kind="the recipe")
    if not any(source.weight for source in recipe.data):
        raise ValueError("no row of 'data' has a weight above 0")
    for name in ("weight_decay", "clip_norm", "judge_images"):
        _at_least(name, getattr(recipe, name), 0)
    _at_least("judge_every", recipe.judge_every, 1)
    for name in ("average", "corrections"):
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {getattr(recipe, name)}")
    return recipe


def _rows(table: Mapping[str, Any], key: str, build: Any) -> tuple[Any, ...]:  # noqa: ANN401
    rows = table.get(key)
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"'{key}' must be a list of tables, each opened by [[{key}]]")
    return tuple(build(row) for row in rows)


def _prompts(row: Mapping[str, Any]) -> PromptSource:
    parameters = dict(row)
    weight, kind = parameters.pop("weight", None), parameters.pop("degradation", None)
    if not is_of_kind(weight, float) or weight <= 0 or not isinstance(kind, str):
        raise ValueError("each row of 'prompts' needs a degradation and a weight above 0")
    return PromptSource(float(weight), kind, build_degradation(kind, parameters))


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
