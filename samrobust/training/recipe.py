"""Recipes: all of a training that can change its result."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from samrobust.interfaces import Degradation
from samrobust.registry import one_of
from samrobust.segmenters.plugin_settings import PluginSettings

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
