"""Recipes: everything that can change the result of a training, read from TOML."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from samrobust.degradations.clicks import Click
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
from samrobust.protocol import MAX_CLICKS, degradation_of_row, find_file
from samrobust.segmenters.plugin_settings import PluginSettings
from samrobust.types import Degradation

Source = Literal["data", "ellipses"]
Start = Literal["nothing", "imagenet"]
Count = Annotated[int, Meta(ge=0)]
_ROWS = Meta(min_length=1, max_length=1_000)
MAX_SCALE = 1e6
"""Maximum factor by which the steps of a recipe can be multiplied."""
HELD_OUT = 0.01
"""Held-out fraction of data sets that are named by `--data`: some 440 images of HQSeg-44K."""


@dataclass(frozen=True)
class Phase:
    """A phase of training.

    Attributes:
        name: for the log.
        steps: of the optimizer; 0 if `epochs` is given.
        epochs: number of images to draw, as a multiple of the number of images; 0 if `steps` is
            given. Images are drawn at random with replacement.
        images: per step, over all processes.
        objects: maximum number of prompted objects per image.
        kinds: number of kinds of prompt per image, which is encoded once for all of them.
        side: of the square input in pixels, a multiple of 32; 0 for the model's own.
        learning_rate: after the warm-up.
        last_learning_rate: at the end, after a cosine decay.
        warmup: steps in which the learning rate rises from 0.
        source: "data", the recipe's data sets, or "ellipses", masks without an image and with noise
            in place of an embedding, from which a decoder learns the positions of boxes and points
            (docs/sources/sam-nano.md).
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
    """A data set to train on.

    Attributes:
        dataset: as registered.
        weight: how often its images are drawn, relative to other data sets; 0 for never.
        per_image: whether the weight is that of each image instead of the data set.
        folder: its root below `--data-root`, "." for that folder itself, "" if it needs none.
        split: its split, "" for the default.
        held_out: fraction of its images, chosen by a hash of their ids, that is used for validation
            and never for training.
    """

    dataset: str
    weight: NonNegative
    folder: str = ""
    split: str = ""
    held_out: Fraction = 0.0
    per_image: bool = False


@dataclass(frozen=True)
class PromptSource:
    """A kind of prompt to train with.

    Attributes:
        weight: how often it is drawn, relative to other kinds.
        kind: name of the degradation.
        degradation: makes the prompts.
    """

    weight: float
    kind: str
    degradation: Degradation


@dataclass(frozen=True)
class CorrectiveClicks:
    """How the points of corrections are placed: as the clicks of a conversation.

    Attributes:
        most: maximum number of clicks after the first prompt; each corrected step draws from 1 to
            so many.
        policy: where they are placed, in the grid of the logits.
        gamma: see `samrobust.degradations.clicks.Click`.
    """

    most: Annotated[int, Meta(ge=1, le=MAX_CLICKS)] = 1
    policy: Literal["deepest", "sampled"] = "deepest"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        self.click()  # which refuses what does not fit

    def click(self) -> Click:
        """Return the policy."""
        return Click(self.policy, self.gamma)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses of a prompt.

    Differs: SAM's focal and Dice losses have weights 20 and 1, gamma 2 and alpha 0.25 (Kirillov et
    al. 2023, app. A). Cross-entropy has larger gradients while most pixels are wrong, as in a short
    training from random weights (docs/sources/sam-nano.md).

    Attributes:
        cross_entropy: of the pixels.
        focal_gamma: exponent that reduces the loss of well-classified pixels; 0 is cross-entropy.
        dice: 1 - Dice coefficient of the soft mask.
        quality: squared error of the predicted IoU; with 0 it is not trained.
        candidate: loss of the best of the three candidate masks, relative to that of the single
            mask; with 0 they are not trained.
        sampled: side of a square of as many pixels as points are sampled, as a fraction of the
            mask's side; most points are where the mask is uncertain (HQ-SAM: 112 / 256); 0 for all
            pixels.
        distilled: share of the target that is what the base answers to the exact box, whatever the
            prompt (self-distillation); the rest is the object's mask. 0 for models without a base.
    """

    cross_entropy: NonNegative = 2.0
    focal_gamma: NonNegative = 0.0
    dice: NonNegative = 1.0
    quality: NonNegative = 1.0
    candidate: NonNegative = 1.0
    sampled: Fraction = 0.0
    distilled: Fraction = 0.0


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of images.

    Attributes:
        least_crop: minimum side of a crop, as a fraction of the image's.
        flip: fraction of crops that are mirrored.
        colour: maximum change of brightness, contrast and channels, as a fraction.
        grey: fraction of crops without colour.
        paste: fraction of crops with pasted objects of another image.
        least_pixels: minimum number of pixels of an object in the encoder's input.
        mix: maximum share of another image of the step in the embedding of a frozen encoder, drawn
            uniformly for each image (after Verma et al. 2019, "Manifold mixup"). Targets stay: a
            base reads images that it was trained on too well, and new ones less so.
    """

    least_crop: Fraction = 0.4
    flip: Fraction = 0.5
    colour: Fraction = 0.25
    grey: Fraction = 0.1
    paste: Fraction = 0.0
    least_pixels: Annotated[int, Meta(ge=1)] = 48
    mix: Fraction = 0.0


@dataclass(frozen=True)
class Trunk:
    """The trunk of an encoder that is trained.

    Attributes:
        start: initial weights: "nothing" for random ones, "imagenet" for those of a classifier that
            was trained on ImageNet.
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
        models: that can be trained with it.
        summary: one line.
        seed: of the initial weights and of all random draws, below 2**63 for torch's generators.
        weight_decay: of AdamW.
        clip_norm: maximum norm of the gradient.
        average: decay of the moving average of the weights, which is validated and saved.
        interpolation: how far from the initial weights towards that average the validated and
            saved weights are; below 1 less changes, for better and worse (Wortsman et al. 2022,
            "Robust fine-tuning of zero-shot models").
        corrections: fraction of the steps in which each prompt gets one more point, drawn from
            where the first prediction is wrong (Kirillov et al. 2023, app. A), or several, as
            `clicks` says.
        judge_every: steps between two validations; another one follows the last step.
        judge_images: held-out images per data set in a validation, except for the last, which uses
            all; 0 for no validation.
        phases: in order.
        data: at least one with a weight above 0.
        prompts: at least one.
        loss: of a prompt.
        augmentation: of the images.
        plugins: settings of Stable-SAM's plugins.
        trunk: of the encoder, if it is trained.
        rates: model -> factor of its learning rates, 1 if missing.
        clicks: how the points of corrections are placed; None for one, drawn uniformly from what is
            wrong.
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
    clicks: CorrectiveClicks | None = None
    interpolation: Fraction = 1.0

    @property
    def n_steps(self) -> int:
        """Return the number of steps of all phases."""
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
    """Return a recipe from one or several files.

    Args:
        name: of a packaged recipe, or the path of a user's own.
        changes: names or paths of files with some of a recipe's keys, which replace those of the
            files before. The name of the recipe joins the names of all files.

    Raises:
        RecipeError: a file is missing or invalid; the message names file, table and key.
        UnknownNameError: no packaged recipe has that name.
    """
    names = name, *changes
    first, *others = map(_read, names)
    merged = dict(first)
    for other in others:
        unchanged = {key: merged[key] for key in ("name", "version", "summary") if key in merged}
        merged |= other | unchanged
    if others:
        merged["name"] = "+".join(str(table.get("name")) for table in (first, *others))
    files = " + ".join(_path(name).name for name in names)
    with errors_at(files, RecipeError):
        return _build(merged)


def recipe_summary(name: str) -> str:
    """Return the summary of a packaged recipe, which may have only some keys.

    Raises:
        RecipeError: the file is invalid.
    """
    return str(_read(name).get("summary", ""))


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain JSON values, for the header of weights files."""
    table = dataclasses.asdict(recipe) | {"plugins": recipe.plugins.described}
    # as of recipes before there were any
    if recipe.clicks is None:
        table.pop("clicks")
    if not recipe.loss.distilled:
        table["loss"].pop("distilled")
    if not recipe.augmentation.mix:
        table["augmentation"].pop("mix")
    if recipe.interpolation == 1:
        table.pop("interpolation")
    for row, source in zip(table["prompts"], recipe.prompts, strict=True):
        row["degradation"] = dataclasses.asdict(source.degradation)  # type: ignore[call-overload]
    return table


def recipe_hash(recipe: Recipe) -> str:
    """Return the SHA-256 of the JSON of `describe_recipe`, in hex."""
    text = json.dumps(describe_recipe(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def lengthened(recipe: Recipe, factor: float) -> Recipe:
    """Return a recipe with `factor` times the steps or epochs of every phase; warm-ups stay.

    Raises:
        RecipeError: the factor is not a number above 0, or larger than `MAX_SCALE`.
    """
    if not 0 < factor <= MAX_SCALE:
        raise RecipeError(
            f"the factor of steps must be above 0 and at most {MAX_SCALE:g}, got {factor}"
        )
    phases = tuple(
        dataclasses.replace(phase, steps=max(1, round(factor * phase.steps)))
        if phase.steps
        else dataclasses.replace(phase, epochs=factor * phase.epochs)
        for phase in recipe.phases
    )
    return dataclasses.replace(recipe, phases=phases)


def counted(recipe: Recipe, n_images: int) -> Recipe:
    """Return a recipe with the epochs of its phases converted to steps.

    Args:
        recipe: the recipe.
        n_images: number of images to train on.
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
    """Return a recipe with other data sets, whose images are all drawn equally often.

    Args:
        recipe: the recipe.
        datasets: as registered.
        split: of each, "" for the default.
        in_root: whether `--data-root` is their root.
    """
    folder = "." if in_root else ""
    rows = [
        DataSource(dataset, 1.0, folder, split, held_out=HELD_OUT, per_image=True)
        for dataset in datasets
    ]
    return dataclasses.replace(recipe, data=tuple(rows))


def recipe_for(recipe: Recipe, model: str) -> Recipe:
    """Return a recipe for one of its models, with that model's learning rates.

    Raises:
        RecipeError: the recipe does not train that model.
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
    """The keys of a row of `prompts` other than the parameters of its degradation."""

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
    """Return the kind of prompt of a table; `convert` refuses rows that are not tables."""
    if not isinstance(row, dict):
        return row
    where = f"row {number} of 'prompts'"
    keys, degradation = degradation_of_row(row, _PromptKeys, where=where)
    return PromptSource(keys.weight, keys.degradation, degradation)
