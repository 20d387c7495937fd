"""Recipes: all of a training that can change its result, read from TOML."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from samrobust.datasets.images import leaves_root
from samrobust.errors import RecipeError, SamrobustError
from samrobust.files import is_of_kind, make_settings, read_table, shown
from samrobust.protocol import build_degradation
from samrobust.registry import known, one_of
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.types import Degradation

Source = Literal["data", "ellipses"]
Start = Literal["nothing", "imagenet"]


@dataclass(frozen=True)
class Phase:
    """A stretch of training: so many steps of one kind.

    Attributes:
        name: for the log.
        steps: of the optimiser; 0 where `epochs` says how long it is.
        epochs: as many images are drawn as there are, times this number; 0 where `steps` says it.
            They are drawn at random, with replacement: an epoch is a length and not a list.
        images: in a step, over all processes.
        objects: of an image that are prompted, at most.
        kinds: of prompt that each image is given, one after the other. An image is encoded once
            for all of them.
        side: pixels of the square input, a multiple of 32; 0 for the model's own.
        learning_rate: at the start, after the warm-up.
        last_learning_rate: at the end; between them half a cosine.
        warmup: steps in which the learning rate rises from 0.
        source: "data", the recipe's data sets, or "ellipses": drawn masks without an image, behind
            noise in the place of an embedding, from which a decoder learns where boxes and points
            are (facts/sam-nano.md).
    """

    name: str
    images: int
    objects: int
    learning_rate: float
    steps: int = 0
    epochs: float = 0.0
    kinds: int = 1
    last_learning_rate: float = 0.0
    warmup: int = 0
    side: int = 0
    source: str = "data"

    def __post_init__(self) -> None:
        for name in ("images", "objects", "kinds"):
            at_least(name, getattr(self, name), 1)
        for name in ("steps", "epochs", "learning_rate", "last_learning_rate", "warmup"):
            at_least(name, getattr(self, name), 0)
        if bool(self.steps) == bool(self.epochs):
            raise ValueError("either steps or epochs must be above 0, not both")
        if self.side % 32 or self.side < 0:
            raise ValueError(f"side must be a multiple of 32, got {self.side}")
        one_of(Source, self.source, kind="source")


@dataclass(frozen=True)
class DataSource:
    """A data set to learn from.

    Attributes:
        dataset: as registered.
        weight: how often it is drawn from, against the others; 0 for never.
        per_image: whether the weight is that of each image instead of the data set's.
        folder: its root inside the folder that is given with the command, "." for that folder
            itself; "" where it has none.
        split: part of it.
        held_out: share of its images, chosen by a hash of their ids, that is never trained on and
            judged instead.
    """

    dataset: str
    weight: float
    folder: str = ""
    split: str = ""
    held_out: float = 0.0
    per_image: bool = False

    def __post_init__(self) -> None:
        at_least("weight", self.weight, 0)
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
        quality: squared error of the predicted IoU; with 0 it learns nothing.
        candidate: of the best of the three candidate masks, beside the single mask's 1; with 0
            they learn nothing.
        sampled: points at which a mask is compared, as a side of a square in sides of the mask,
            most of them where it is unsure (HQ-SAM: 112 of 256); 0 for all positions.
    """

    cross_entropy: float = 2.0
    focal_gamma: float = 0.0
    dice: float = 1.0
    quality: float = 1.0
    candidate: float = 1.0
    sampled: float = 0.0

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            at_least(field_.name, getattr(self, field_.name), 0)
        if self.sampled > 1:
            raise ValueError(f"sampled must be at most 1, got {self.sampled}")


@dataclass(frozen=True)
class Augmentation:
    """How photographs are varied.

    Attributes:
        least_crop: least side of a crop, as a fraction of the image's.
        flip: share of crops that are mirrored.
        colour: how far brightness, contrast and each channel swing, as a fraction.
        grey: share of crops without colour.
        paste: share of crops with objects of another image in front.
        least_pixels: of an object in the encoder's input: smaller ones are a smudge there.
    """

    least_crop: float = 0.4
    flip: float = 0.5
    colour: float = 0.25
    grey: float = 0.1
    paste: float = 0.0
    least_pixels: int = 48

    def __post_init__(self) -> None:
        at_least("least_pixels", self.least_pixels, 1)
        for name in ("least_crop", "flip", "colour", "grey", "paste"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True)
class Trunk:
    """How the trunk of an encoder begins, where the model has one that is trained.

    Attributes:
        start: "nothing", random weights, or "imagenet", those of a network trained to tell what
            photographs show.
        rate: factor of its learning rates.
    """

    start: str = "nothing"
    rate: float = 1.0

    def __post_init__(self) -> None:
        one_of(Start, self.start, kind="start")
        at_least("rate", self.rate, 0)


@dataclass(frozen=True)
class Recipe:
    """A training.

    Attributes:
        name: of the recipe.
        version: raised whenever a number changes.
        models: what can be trained by it.
        summary: one line.
        seed: of the weights and of every draw.
        weight_decay: of AdamW.
        clip_norm: the gradient's norm is cut to it.
        average: decay of the moving average of the weights, which is what is judged and kept.
        corrections: share of the steps in which every prompt gets one more point, drawn from where
            the first answer was wrong (Kirillov et al. 2023, app. A).
        judge_every: steps between two looks at held-out images; one more comes at the end.
        judge_images: held-out images of a data set in a look, but for the last, which is at all;
            0 for no looks.
        phases: one after the other.
        data: at least one, each `weight` >= 0.
        prompts: at least one.
        loss: of one prompt.
        augmentation: of the images.
        plugins: how they are made, where the model has some.
        trunk: of the encoder, where it is trained.
        rates: factors of the learning rates by model; 1 where it has none.
    """

    name: str
    version: int
    models: tuple[str, ...]
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
    plugins: PluginSettings = field(default_factory=PluginSettings)
    trunk: Trunk = field(default_factory=Trunk)
    rates: Mapping[str, float] = field(default_factory=dict)

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


def at_least(name: str, value: float, least: float) -> None:
    """Raise a ValueError where a number is smaller than it may be."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


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


LONGEST = 1e6
"""Times that a recipe can be made longer."""
HELD_OUT = 0.01
"""Share of the images of a data set that a recipe does not name, which are judged: of HQSeg-44K
some 440."""


def lengthened(recipe: Recipe, factor: float) -> Recipe:
    """Return a recipe with `factor` times the length of every phase, warm-ups as they are.

    Raises:
        RecipeError: the factor is not a number above 0, or larger than `LONGEST`.
    """
    if not 0 < factor <= LONGEST:
        raise RecipeError(
            f"a recipe can be made longer by a factor above 0, got {factor}; at most {LONGEST:g}"
        )
    phases = tuple(
        dataclasses.replace(phase, steps=max(1, round(factor * phase.steps)))
        if phase.steps
        else dataclasses.replace(phase, epochs=factor * phase.epochs)
        for phase in recipe.phases
    )
    return dataclasses.replace(recipe, phases=phases)


def counted(recipe: Recipe, n_images: int) -> Recipe:
    """Return a recipe whose phases say how many steps they are long, where they said epochs.

    Args:
        recipe: the recipe.
        n_images: that it learns from.
    """
    phases = tuple(
        dataclasses.replace(
            phase, steps=math.ceil(phase.epochs * n_images / phase.images), epochs=0.0
        )
        if phase.epochs
        else phase
        for phase in recipe.phases
    )
    return dataclasses.replace(recipe, phases=phases)


def with_data(recipe: Recipe, datasets: Sequence[str], split: str, *, in_root: bool) -> Recipe:
    """Return a recipe that learns from some data sets, all their images alike, and from no other.

    Args:
        recipe: the recipe.
        datasets: as registered.
        split: part of each, "" for its default.
        in_root: whether they lie in the folder that is given with the command.
    """
    folder = "." if in_root else ""
    rows = [
        DataSource(dataset, 1.0, folder, split, held_out=HELD_OUT, per_image=True)
        for dataset in datasets
    ]
    return dataclasses.replace(recipe, data=tuple(rows))


def recipe_for(recipe: Recipe, model: str) -> Recipe:
    """Return a recipe as it is for one model, with that model's learning rates.

    Raises:
        RecipeError: it does not train that model.
    """
    if model not in recipe.models:
        trained = ", ".join(recipe.models)
        raise RecipeError(f"recipe '{recipe.name}' trains {trained}, not {model}")
    rate = recipe.rates.get(model, 1.0)
    phases = tuple(
        dataclasses.replace(
            phase,
            learning_rate=rate * phase.learning_rate,
            last_learning_rate=rate * phase.last_learning_rate,
        )
        for phase in recipe.phases
    )
    return dataclasses.replace(recipe, models=(model,), phases=phases, rates={})
