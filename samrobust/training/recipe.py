"""Recipes: all of a training that can change its result, read from TOML."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from samrobust.errors import RecipeError
from samrobust.files import (
    Fraction,
    NonNegative,
    convert,
    errors_at,
    leaves_root,
    read_toml,
    shown,
)
from samrobust.protocol import degradation_of_row, find_file
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.types import Degradation

Source = Literal["data", "ellipses"]
Start = Literal["nothing", "imagenet"]
Count = Annotated[int, Meta(ge=0)]
_ROWS = Meta(min_length=1, max_length=1_000)
MAX_SCALE = 1e6
"""The most by which a recipe can be lengthened."""
HELD_OUT = 0.01
"""Share of the images of a data set that a recipe does not name, which are judged: of HQSeg-44K
some 440."""


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
            are (docs/sources/sam-nano.md).
    """

    name: str
    images: Annotated[int, Meta(ge=1, le=4_096)]
    objects: Annotated[int, Meta(ge=1, le=1_000)]
    learning_rate: NonNegative
    steps: Annotated[int, Meta(ge=0, le=10**9)] = 0
    epochs: Annotated[int, Meta(ge=0, le=10**6)] | Annotated[float, Meta(ge=0, le=10**6)] = 0.0
    kinds: Annotated[int, Meta(ge=1, le=100)] = 1
    last_learning_rate: NonNegative = 0.0
    warmup: Count = 0
    side: Annotated[int, Meta(ge=0, le=4_096, multiple_of=32)] = 0
    source: Source = "data"

    def __post_init__(self) -> None:
        if bool(self.steps) == bool(self.epochs):
            raise ValueError("either steps or epochs must be above 0, not both")


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
    weight: NonNegative
    folder: str = ""
    split: str = ""
    held_out: Fraction = 0.0
    per_image: bool = False


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
    of a short training from nothing (the weights of docs/sources/sam-nano.md).

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

    cross_entropy: NonNegative = 2.0
    focal_gamma: NonNegative = 0.0
    dice: NonNegative = 1.0
    quality: NonNegative = 1.0
    candidate: NonNegative = 1.0
    sampled: Fraction = 0.0


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

    least_crop: Fraction = 0.4
    flip: Fraction = 0.5
    colour: Fraction = 0.25
    grey: Fraction = 0.1
    paste: Fraction = 0.0
    least_pixels: Annotated[int, Meta(ge=1)] = 48


@dataclass(frozen=True)
class Trunk:
    """How the trunk of an encoder begins, where the model has one that is trained.

    Attributes:
        start: "nothing", random weights, or "imagenet", those of a network trained to tell what
            photographs show.
        rate: factor of its learning rates.
    """

    start: Start = "nothing"
    rate: NonNegative = 1.0


@dataclass(frozen=True)
class Recipe:
    """A training.

    Attributes:
        name: of the recipe.
        version: raised whenever a number changes.
        models: what can be trained by it.
        summary: one line.
        seed: of the weights and of every draw; torch's generators take none of 2**63 or more.
        weight_decay: of AdamW.
        clip_norm: the gradient's norm is cut to it.
        average: decay of the moving average of the weights, which is what is judged and kept.
        corrections: share of the steps in which every prompt gets one more point, drawn from where
            the first answer was wrong (Kirillov et al. 2023, app. A).
        judge_every: steps between two looks at held-out images; one more comes at the end.
        judge_images: held-out images of a data set in a look, but for the last, which is at all;
            0 for no looks.
        phases: one after the other.
        data: at least one with a weight above 0.
        prompts: at least one.
        loss: of one prompt.
        augmentation: of the images.
        plugins: how they are made, where the model has some.
        trunk: of the encoder, where it is trained.
        rates: factors of the learning rates by model; 1 where it has none.
    """

    name: str
    version: int
    models: Annotated[tuple[str, ...], Meta(min_length=1)]
    summary: str
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    weight_decay: NonNegative
    clip_norm: NonNegative
    average: Fraction
    corrections: Fraction
    judge_every: Annotated[int, Meta(ge=1)]
    judge_images: Count
    phases: Annotated[tuple[Phase, ...], _ROWS]
    data: Annotated[tuple[DataSource, ...], _ROWS]
    prompts: Annotated[tuple[PromptSource, ...], _ROWS]
    loss: LossWeights = field(default_factory=LossWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)
    plugins: PluginSettings = field(default_factory=PluginSettings)
    trunk: Trunk = field(default_factory=Trunk)
    rates: Mapping[str, NonNegative] = field(default_factory=dict)

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
    files = " + ".join(_path(each).name for each in (name, *changes))
    with errors_at(files, RecipeError):
        return _build(merged)


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


def lengthened(recipe: Recipe, factor: float) -> Recipe:
    """Return a recipe with `factor` times the length of every phase, warm-ups as they are.

    Raises:
        RecipeError: the factor is not a number above 0, or larger than `MAX_SCALE`.
    """
    if not 0 < factor <= MAX_SCALE:
        raise RecipeError(
            f"a recipe can be made longer by a factor above 0, got {factor}; at most {MAX_SCALE:g}"
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


@dataclass(frozen=True)
class _PromptKeys:
    """The keys of a row of `prompts` beside the parameters of its degradation."""

    degradation: str
    weight: Annotated[float, Meta(gt=0)]


def _path(name: str) -> Path:
    return find_file(name, packaged_recipes(), kind="recipe")


def _read(name: str) -> dict[str, Any]:
    return read_toml(_path(name), error=RecipeError)


def _build(table: Mapping[str, Any]) -> Recipe:
    rows = table.get("prompts")
    if isinstance(rows, list):
        table = {**table, "prompts": [_prompt(row, n) for n, row in enumerate(rows, start=1)]}
    recipe = convert(table, Recipe, where="the recipe")
    if not any(source.weight for source in recipe.data):
        raise ValueError("no row of 'data' has a weight above 0")
    for number, source in enumerate(recipe.data, start=1):
        for key, value in (("folder", source.folder), ("split", source.split)):
            if leaves_root(value):
                place = f"row {number} of 'data': {key}"
                raise ValueError(f"{place} {shown(value)} leaves the data root")
    return recipe


def _prompt(row: object, number: int) -> object:
    """Return the prompts of a table; what is no table is left to `convert` to refuse."""
    if not isinstance(row, dict):
        return row
    where = f"row {number} of 'prompts'"
    keys, degradation = degradation_of_row(row, _PromptKeys, where=where)
    return PromptSource(keys.weight, keys.degradation, degradation)
