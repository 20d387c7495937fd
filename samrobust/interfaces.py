"""What segmenters, data sets, degradations and metrics must offer, and what protocols are made of.

These are structural: a class written elsewhere needs the members named here and no base class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from samrobust.types import (
    DatasetInfo,
    Frame,
    Image,
    Mask,
    Prediction,
    Prompt,
    PromptBatch,
    PromptKind,
    Sample,
    SegmenterInfo,
    Selection,
)

if TYPE_CHECKING:
    import torch

E = TypeVar("E")
EncoderDtype = Literal["float32", "bfloat16", "float16"]
HqOutput = Literal["sum", "hq"]
"""Of an HQ-SAM: SAM's logits and the HQ token's, or the HQ token's alone."""


class Segmenter(Protocol[E]):
    """A promptable segmenter; it needs these three members and no base class."""

    @property
    def info(self) -> SegmenterInfo:
        """Return what it is and what it accepts."""
        ...

    def encode(self, images: Sequence[Image]) -> list[E]:
        """Return one embedding an image: all of the work that depends on no prompt.

        Args:
            images: (H, W, 3) uint8 RGB each; sizes may differ.
        """
        ...

    def predict(self, embedding: E, prompts: PromptBatch, *, multimask: bool = False) -> Prediction:
        """Return the masks of N prompts of one image.

        A function of its arguments. It does not switch gradients off: that is the caller's choice.

        Args:
            embedding: of that image, from `encode`.
            prompts: in pixels of the original image.
            multimask: ask for the candidates of an ambiguous prompt instead of a single mask.
        """
        ...


class Dataset(Protocol):
    """Images with masks, found by id."""

    @property
    def info(self) -> DatasetInfo:
        """Return what it is."""
        ...

    def ids(self) -> Sequence[str]:
        """Return the sample ids, in the order in which `--limit` counts them."""
        ...

    def __getitem__(self, sample_id: str) -> Sample:
        """Return one sample.

        Raises:
            DatasetError: its image or a mask is missing, broken or empty.
        """
        ...


@runtime_checkable
class Weighed(Protocol):
    """What a data set may offer besides: shares of its images that take about as long."""

    def cost(self, sample_id: str) -> float:
        """Return about how long an image takes beside others, in any unit, without reading it."""
        ...


class Degradation(Protocol):
    """A way to make a prompt of a mask; its dataclass fields are its parameters in TOML."""

    family: ClassVar[str]
    """Conditions of one family share their noise: a ladder of levels is paired."""
    gives: ClassVar[frozenset[PromptKind]]
    """The kinds of prompt that it draws."""

    @property
    def is_random(self) -> bool:
        """Return whether two trials can differ."""
        ...

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return a prompt for `mask`, (H, W) bool and not empty, with all randomness from `rng`."""
        ...


class MetricFunction(Protocol):
    """Scores of T masks of one object."""

    def __call__(self, masks: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
        """Return float64 of shape (T,), or (1,) for a metric over trials.

        Args:
            masks: (T, H, W) bool, one a trial.
            target: (H, W) bool, on the same device, not empty.
        """
        ...


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        name: as registered ("boundary-iou").
        fn: the computation.
        over_trials: one value for all trials of a condition, stored as trial -1; needs two trials.
    """

    name: str
    fn: MetricFunction
    over_trials: bool = False


@dataclass(frozen=True)
class Condition:
    """One cell of a protocol: a degradation, how often it is drawn and which mask counts.

    Attributes:
        name: unique in its protocol ("box-noise-0.4").
        degradation: makes the prompts.
        kind: the registered name of the degradation.
        trials: prompts an object; 1 where the degradation is not random.
        level: place on the axis of a plot (noise level, number of points), None for none.
    """

    name: str
    degradation: Degradation
    kind: str
    trials: int
    level: float | None = None


@dataclass(frozen=True)
class Reported:
    """One published value, shown beside ours.

    Attributes:
        segmenter: as the paper names it.
        dataset: the data set or group that it was measured on.
        condition: the condition of the protocol that it belongs to.
        metric: "iou", "boundary-iou" or "stability".
        value: in [0, 1].
        source: paper and table.
    """

    segmenter: str
    dataset: str
    condition: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class EvalProtocol:
    """A versioned list of conditions, and how their masks are scored.

    Attributes:
        name: of the protocol ("noisy-box").
        version: raised whenever a number changes.
        summary: one line.
        source: the paper or fact sheet that it follows.
        seed: the first part of every prompt's key.
        metrics: names of the metrics.
        selection: which candidate mask counts: the one-mask output, the candidate of best own
            quality, or the candidate of best IoU with the target.
        conditions: at least one, names unique.
        reported: published values.
        trials: the number asked for instead of the file's own, None where the file decides.
    """

    name: str
    version: int
    summary: str
    source: str
    seed: int
    metrics: tuple[str, ...]
    selection: Selection
    conditions: tuple[Condition, ...]
    reported: tuple[Reported, ...] = ()
    trials: int | None = None


@dataclass(frozen=True)
class SegmenterOptions:
    """What the builder of a segmenter is given; it raises on an option that it cannot follow.

    Attributes:
        variant: one of its models, "" for its default.
        checkpoint: a weights file, None for its own default.
        device: "cpu", "cuda" or "cuda:1".
        dtype: of the image encoder.
        frame: how images reach the model.
        base_checkpoint: weights file of the model that `checkpoint` is a part of, None for the
            published one.
        output: which of its outputs an HQ-SAM gives, "" for its default.
        progress: told how many bytes are here and how many there are, while weights are fetched.
        compile: whether to compile an image encoder that is a ViT; others stay as they are.
    """

    variant: str = ""
    checkpoint: Path | None = None
    device: str = "cpu"
    dtype: EncoderDtype = "float32"
    frame: Frame = "longest-side"
    base_checkpoint: Path | None = None
    output: str = ""
    progress: Callable[[int, int], None] | None = None
    compile: bool = False


class SegmenterBuilder(Protocol):
    """What stands under a segmenter's name in the registry."""

    def __call__(self, options: SegmenterOptions) -> "Segmenter[Any]":
        """Return the segmenter, ready to run.

        Raises:
            SegmenterError: an option is not one of its own, or its weights cannot be had.
        """
        ...


@dataclass(frozen=True)
class DatasetOptions:
    """What the builder of a data set is given.

    Attributes:
        root: the folder of its files, None for a data set that needs none.
        split: part of it, "" for its default.
    """

    root: Path | None = None
    split: str = ""


class DatasetBuilder(Protocol):
    """What stands under a data set's name in the registry."""

    def __call__(self, options: DatasetOptions) -> "Dataset":
        """Return the data set, its files listed but not yet read.

        Raises:
            DatasetError: the folder is missing or not laid out as it must be.
        """
        ...
