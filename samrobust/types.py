"""Data types and interfaces that the modules share; shapes are checked on construction."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
PromptKind = Literal["box", "points", "mask"]
Selection = Literal["single", "best-quality", "oracle"]
Frame = Literal["longest-side", "squash"]
Keep = Literal["none", "worst", "all"]
"""Which masks of an evaluation are stored."""

ClickPolicy = Literal["deepest", "sampled", "groups"]
"""Where a corrective click is placed; see `samrobust.degradations.clicks.Click`."""

FOREGROUND, BACKGROUND = 1, 0
NO_POINT = -1
"""Label of what is no point, in a batch whose prompts have different numbers of points."""


def _check(name: str, array: npt.NDArray[Any], dtype: type, shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=False)
    )
    if array.dtype != dtype or not fits:
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} must be {np.dtype(dtype).name} of shape ({wanted}), "
            f"got {array.dtype} of shape {array.shape}"
        )


@dataclass(frozen=True)
class Instance:
    """One object of an image.

    Attributes:
        instance_id: unique within its image ("0" if the image has one mask).
        mask: (H, W) bool, the target; not empty, made read-only.
        category: its class, "" if unknown.
        supercategory: the group of classes that it is of, "" if unknown.
    """

    instance_id: str
    mask: Mask
    category: str = ""
    supercategory: str = ""

    def __post_init__(self) -> None:
        _check("mask", self.mask, np.bool_, (None, None))
        if not self.mask.any():
            raise ValueError(f"mask of instance '{self.instance_id}' is empty")
        self.mask.setflags(write=False)


@dataclass(frozen=True)
class Sample:
    """One image with its objects.

    Attributes:
        sample_id: stable and unique within its data set.
        image: (H, W, 3) uint8 RGB.
        instances: at least one; masks have the image's size, ids are unique.
        void: (H, W) bool, pixels that no metric counts; None for none.
        left_out: one line for each object that was left out, with the reason.
        file_name: of the image, "" where it is of no file.
    """

    sample_id: str
    image: Image
    instances: Sequence[Instance]
    void: Mask | None = None
    left_out: tuple[str, ...] = ()
    file_name: str = ""

    def __post_init__(self) -> None:
        _check("image", self.image, np.uint8, (None, None, 3))
        if not self.instances:
            raise ValueError(f"sample '{self.sample_id}' has no instances")
        for instance in self.instances:
            _check("mask", instance.mask, np.bool_, self.image.shape[:2])
        if self.void is not None:
            _check("void", self.void, np.bool_, self.image.shape[:2])
            if any((self.void & instance.mask).any() for instance in self.instances):
                raise ValueError(f"sample '{self.sample_id}' has an object in its void")
        if len({instance.instance_id for instance in self.instances}) < len(self.instances):
            raise ValueError(f"sample '{self.sample_id}' has an instance id twice")


@dataclass(frozen=True)
class Prompt:
    """A prompt for one object: a box, points or both, and perhaps the answer to an earlier prompt.

    Attributes:
        box: (4,) float32 xyxy, inclusive pixel indices, or None.
        points: (K, 2) float32 xy.
        labels: (K,) int32, 1 foreground, 0 background.
        logits: (h, w) float32 of an earlier answer (`Prediction.logits`), or None.
    """

    box: npt.NDArray[np.float32] | None = None
    points: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    labels: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    logits: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.logits is not None:
            _check("logits", self.logits, np.float32, (None, None))
        if self.box is not None:
            _check("box", self.box, np.float32, (4,))
            if not (self.box[:2] <= self.box[2:]).all():
                raise ValueError(f"box must be x0 <= x1 and y0 <= y1, got {self.box.tolist()}")
        _check("points", self.points, np.float32, (None, 2))
        _check("labels", self.labels, np.int32, (len(self.points),))
        if not np.isin(self.labels, (FOREGROUND, BACKGROUND)).all():
            raise ValueError(f"labels must be 0 or 1, got {self.labels.tolist()}")
        if self.box is None and len(self.points) == 0:
            raise ValueError("a prompt needs a box or at least one point")


@dataclass(frozen=True)
class PromptBatch:
    """N prompts of one image with the same structure: all or none have a box, all have K points.

    Attributes:
        boxes: (N, 4) float32, or None.
        points: (N, K, 2) float32.
        labels: (N, K) int32.
        logits: (N, h, w) float32 of earlier answers, or None. Only segmenters whose `info.prompts`
            has "mask" take them.
    """

    boxes: npt.NDArray[np.float32] | None
    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.points)
        if self.boxes is not None:
            _check("boxes", self.boxes, np.float32, (n, 4))
        _check("points", self.points, np.float32, (n, None, 2))
        _check("labels", self.labels, np.int32, self.points.shape[:2])
        if self.logits is not None:
            _check("logits", self.logits, np.float32, (n, None, None))
        if n == 0:
            raise ValueError("a prompt batch needs at least one prompt")

    def __len__(self) -> int:
        """Return N."""
        return len(self.points)

    def __getitem__(self, rows: slice) -> "PromptBatch":
        """Return the prompts of a slice."""
        boxes = None if self.boxes is None else self.boxes[rows]
        logits = None if self.logits is None else self.logits[rows]
        return PromptBatch(boxes, self.points[rows], self.labels[rows], logits)

    def split(self) -> list[Prompt]:
        """Return the prompts one by one: what `stack` makes a batch of."""
        boxes = [None] * len(self) if self.boxes is None else self.boxes
        logits = [None] * len(self) if self.logits is None else self.logits
        return [Prompt(*each) for each in zip(boxes, self.points, self.labels, logits, strict=True)]

    @property
    def structure(self) -> tuple[bool, int, bool]:
        """Return (has boxes, K, has logits); batches with the same structure can be joined."""
        return self.boxes is not None, self.points.shape[1], self.logits is not None

    @classmethod
    def stack(cls, prompts: Sequence[Prompt]) -> "PromptBatch":
        """Return prompts of the same structure as a batch, in their order.

        Raises:
            ValueError: only some have a box or logits, or they differ in K.
        """
        boxes = [prompt.box for prompt in prompts if prompt.box is not None]
        logits = [prompt.logits for prompt in prompts if prompt.logits is not None]
        some = {len(boxes), len(logits)} - {0, len(prompts)}
        if some or len({len(p.points) for p in prompts}) != 1:
            raise ValueError("prompts of one batch must share a structure")
        return cls(
            np.stack(boxes) if boxes else None,
            np.stack([prompt.points for prompt in prompts]),
            np.stack([prompt.labels for prompt in prompts]),
            np.stack(logits) if logits else None,
        )

    @classmethod
    def join(cls, batches: Sequence["PromptBatch"]) -> "PromptBatch":
        """Return batches of the same structure as one batch, in their order."""
        boxes = [batch.boxes for batch in batches if batch.boxes is not None]
        logits = [batch.logits for batch in batches if batch.logits is not None]
        return cls(
            np.concatenate(boxes) if boxes else None,
            np.concatenate([batch.points for batch in batches]),
            np.concatenate([batch.labels for batch in batches]),
            np.concatenate(logits) if logits else None,
        )


@dataclass(frozen=True)
class Prediction:
    """What a segmenter predicts for N prompts, on its own device.

    Attributes:
        masks: (N, M, H, W) bool, M candidates per prompt, in pixels of the original image.
        quality: (N, M) float32, the model's estimate of each candidate's IoU; 0 if a model has no
            such estimate (M must then be 1), NaN if its logits are not finite (an evaluation then
            fails on this image).
        logits: (N, M, h, w) float32 in the segmenter's own frame and size, which later prompts of
            the same image may hold; None from a segmenter that takes none.
        gradients: (N, 4) float32, see `GivesGradients`; None where they are not wanted.
    """

    masks: "torch.Tensor"
    quality: "torch.Tensor"
    logits: "torch.Tensor | None" = None
    gradients: "torch.Tensor | None" = None

    def __post_init__(self) -> None:
        if self.masks.ndim != 4 or self.quality.shape != self.masks.shape[:2]:
            raise ValueError(
                f"masks must be (N, M, H, W) and quality (N, M), got shapes "
                f"{tuple(self.masks.shape)} and {tuple(self.quality.shape)}"
            )
        logits = self.logits
        if logits is not None and (logits.ndim != 4 or logits.shape[:2] != self.quality.shape):
            raise ValueError(f"logits must be (N, M, h, w), got shape {tuple(logits.shape)}")
        gradients = self.gradients
        if gradients is not None and gradients.shape != (len(self.masks), 4):
            raise ValueError(f"gradients must be (N, 4), got shape {tuple(gradients.shape)}")


@dataclass(frozen=True)
class SegmenterInfo:
    """Description of a segmenter, stored with every run.

    Attributes:
        name: as registered ("sam").
        prompts: kinds of prompt that it accepts; "mask" stands for logits of an earlier answer.
        variant: of the model ("vit_b"), "" if there is only one.
        frame: how images are resized for the model, None if it works on the original image.
        dtype: of the image encoder.
        multimask: whether it can predict several candidates per prompt.
        is_control: whether it is a baseline without learning; these come first in tables.
        checkpoint_sha256: of the weights file, "" if there is none.
        settings: everything else that can change a score.
        trained_on: image collections that it was trained on, as `samrobust.provenance` names them.
    """

    name: str
    prompts: frozenset[PromptKind]
    variant: str = ""
    frame: Frame | None = None
    dtype: str = "float32"
    multimask: bool = False
    is_control: bool = False
    checkpoint_sha256: str = ""
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    trained_on: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return name and variant, for tables and figures."""
        return f"{self.name} {self.variant}".strip()


@dataclass(frozen=True)
class DatasetInfo:
    """Description of a data set, stored with every run.

    Attributes:
        name: as registered ("coco").
        split: its split ("val2017"), "" if it has none.
        fingerprint: a hash that changes with its files or settings.
        folder: name of its root folder, "" if it needs none; distinguishes data sets of one format.
        group: the group that published tables average it in, "" for none.
        group_members: names of all members of that group.
        part: name of the file that lists the images used, "" for all images.
        settings: settings of how its files are read that are not the default.
    """

    name: str
    split: str
    fingerprint: str
    folder: str = ""
    group: str = ""
    group_members: tuple[str, ...] = ()
    part: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return name and split, which are a part of the random key of every prompt."""
        return f"{self.name}/{self.split}" if self.split else self.name

    @property
    def label(self) -> str:
        """Return key, folder and part, for tables and figures."""
        dataset = f"{self.key} in {self.folder}" if self.folder else self.key
        return f"{dataset}, {self.part}" if self.part else dataset


E = TypeVar("E")
EncoderDtype = Literal["float32", "bfloat16", "float16"]
Exif = Literal["auto", "apply", "ignore"]
"""Whether an EXIF orientation is applied; "auto" decides by the size of the masks."""
HqOutput = Literal["sum", "hq"]
"""Output of an HQ-SAM: SAM's logits plus the HQ token's, or only the HQ token's."""


class Segmenter(Protocol[E]):
    """A promptable segmenter: any object with these three members; there is no base class."""

    @property
    def info(self) -> SegmenterInfo:
        """Return its description."""
        ...

    def encode(self, images: Sequence[Image]) -> list[E]:
        """Return one embedding per image: the work that does not depend on prompts.

        Args:
            images: (H, W, 3) uint8 RGB each; sizes may differ.
        """
        ...

    def predict(self, embedding: E, prompts: PromptBatch, *, multimask: bool = False) -> Prediction:
        """Return the masks of N prompts of one image.

        The result depends only on the arguments. Gradients stay as the caller has set them.

        Args:
            embedding: of the image, from `encode`.
            prompts: in pixels of the original image.
            multimask: predict several candidates per prompt instead of a single mask.
        """
        ...


class PredictsAt(Protocol):
    """A segmenter that also gives masks at several thresholds of its logits from one decoding."""

    def predict_at(
        self,
        embedding: Any,  # noqa: ANN401
        prompts: PromptBatch,
        thresholds: Sequence[float],
        *,
        multimask: bool = False,
    ) -> list[Prediction]:
        """Return a prediction per threshold, of the same candidates and qualities.

        At threshold 0 it is what `Segmenter.predict` returns.
        """
        ...


class GivesGradients(Protocol):
    """A segmenter that also tells how its masks change with their boxes; some searches need it."""

    def predict_with_gradients(
        self,
        embedding: Any,  # noqa: ANN401
        prompts: PromptBatch,
        targets: "torch.Tensor",
        thresholds: Sequence[float],
        *,
        selection: Selection,
    ) -> list[Prediction]:
        """Return a prediction per threshold, as `PredictsAt` does, with gradients.

        Gradients are those of the dice loss, in [0, 1], of each prompt's mask in the coordinates
        of its box, in 1 / pixels of the original image. The caller may have switched gradients off.

        Args:
            embedding: of the image, from `encode`.
            prompts: N boxes without points, in pixels of the original image.
            targets: (N, H, W) bool, the object of each prompt; on the CPU.
            thresholds: of the logits.
            selection: of several candidates, the one that the loss is of.
        """
        ...


@runtime_checkable
class SharesEmbeddings(Protocol):
    """A segmenter whose embeddings other segmenters with the same encoder can use."""

    @property
    def encoder_key(self) -> str:
        """Return what embeddings depend on besides the image, "" if they must not be shared.

        Segmenters with the same non-empty key return interchangeable embeddings, so an image is
        encoded once for all of them. The key has the SHA-256 of the encoder's weights, frame,
        dtype, attention, whether it is compiled, and the kind of device.
        """
        ...


@runtime_checkable
class KnowsSamples(Protocol):
    """A segmenter that must know which image it is given, as one of masks that lie in a file."""

    def encode_sample(self, sample: Sample) -> object:
        """Return the embedding of a sample, in place of `Segmenter.encode`."""
        ...


@runtime_checkable
class Dataset(Protocol):
    """Images with masks, by id."""

    @property
    def info(self) -> DatasetInfo:
        """Return its description."""
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


class Degradation(Protocol):
    """Makes prompts from masks; its dataclass fields are its parameters in TOML."""

    family: ClassVar[str]
    """Conditions of one family share their random numbers: their levels are paired."""
    gives: ClassVar[frozenset[PromptKind]]
    """The kinds of prompt that it makes."""

    @property
    def is_random(self) -> bool:
        """Return whether two trials can differ."""
        ...

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:
        """Return a prompt for `mask`, (H, W) bool and not empty; `rng` is the only randomness."""
        ...


@dataclass(frozen=True)
class Asked:
    """The prompts of one object that a search has asked so far, in their order.

    Attributes:
        prompts: N prompts, those of `SearchSpace.starts` first.
        ious: (N,) in [0, 1], of their masks.
        gradients: (N, 4) of their boxes, see `GivesGradients`; None unless the search needs them.
    """

    prompts: PromptBatch
    ious: Floats
    gradients: Floats | None = None


class SearchSpace(Protocol):
    """The prompts of one object among which a search looks; all have the same structure."""

    starts: PromptBatch
    """Of the first round; the first one is the exact prompt."""

    def after(self, number: int, asked: Asked) -> PromptBatch:
        """Return the prompts of a later round; depends on nothing but its arguments.

        Args:
            number: of the round, from 0.
            asked: in all earlier rounds.
        """
        ...

    def percentiles(self, prompts: PromptBatch) -> Floats:
        """Return (N,) in [0, 100], the share of people's prompts that are better."""
        ...


@runtime_checkable
class Search(Protocol):
    """Looks for an object's prompt with which a segmenter does worst, and takes one of those seen.

    Its dataclass fields are its parameters in TOML. Searches of one family with the same parameters
    are one search.
    """

    family: ClassVar[str]
    gives: ClassVar[frozenset[PromptKind]]
    is_random: ClassVar[bool]
    """False: the prompt that is taken is one."""
    takes: ClassVar[Literal["lowest", "highest"]]
    """Of which IoU the prompt is that is scored."""
    needs_gradients: ClassVar[bool]
    """Whether only segmenters that give gradients can be asked."""

    @property
    def rounds(self) -> int:
        """Return how many rounds there are after the first one."""
        ...

    @property
    def n_asked(self) -> int:
        """Return how many prompts a segmenter is asked for an object."""
        ...

    def start(self, mask: Mask, rng: np.random.Generator) -> SearchSpace:
        """Return where to look for a mask (H, W) bool, not empty; `rng` is the only randomness."""
        ...


@runtime_checkable
class GoesByGradient(Protocol):
    """A search that has a counterpart that goes by gradient."""

    def by_gradient(self) -> tuple[str, Search]:
        """Return the registered name of a search with as many prompts, and that search."""
        ...


@dataclass(frozen=True)
class RecordedPrompt:
    """A prompt that somebody gave for an object.

    Attributes:
        instance_id: of the object, "" if its image has only one.
        prompt: in pixels of an image of `size_wh`.
        rater: who gave it, "" if unknown.
        size_wh: width and height of the image as it was shown, None for those of its file.
        place: in the file that it is from, for messages ("line 17").
    """

    instance_id: str
    prompt: Prompt
    rater: str = ""
    size_wh: tuple[int, int] | None = None
    place: str = ""


@dataclass(frozen=True)
class Recording:
    """The recorded prompts of one condition, in place of a degradation.

    Attributes:
        file: name of the file that they are from.
        sha256: of the file's content.
        boxes: how its boxes are written: first and last pixels, or x, y, width and height.
        gives: the kinds of prompt.
        prompts: those of each image, by `image_key`, in the order of their trials.
    """

    is_random: ClassVar[bool] = False
    file: str
    sha256: str
    boxes: Literal["corners", "xywh"]
    gives: frozenset[PromptKind] = field(compare=False)
    prompts: Mapping[str, tuple[RecordedPrompt, ...]] = field(compare=False, repr=False)

    def of(self, sample_id: str) -> tuple[RecordedPrompt, ...]:
        """Return the prompts of an image, () for none."""
        return self.prompts.get(image_key(sample_id), ())


@dataclass(frozen=True)
class Detection(RecordedPrompt):
    """A box that a detector found, of no object until it is matched.

    Attributes:
        category_id: as the annotations of the data set number it.
        score: of the detector, which its mask keeps.
        bbox: x, y, width and height as in the file.
    """

    category_id: int = 0
    score: float = 0.0
    bbox: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Detections(Recording):
    """The boxes of a detector: all give masks, and those that match an object are scored.

    Attributes:
        categories: id -> name.
        min_box_iou: with the tight box of an object of its category, for a match.
    """

    categories: Mapping[int, str] = field(default_factory=dict, compare=False, repr=False)
    min_box_iou: float = 0.5

    def detections(self, sample_id: str) -> tuple[Detection, ...]:
        """Return the detections of an image, () for none."""
        return tuple(each for each in self.of(sample_id) if isinstance(each, Detection))


@dataclass(frozen=True)
class Target:
    """An annotation of an image, as average precision needs it.

    Attributes:
        instance_id: of the annotation.
        category_id: of its category.
        area: in pixels, as annotated; it says whether the object is small, medium or large.
        is_crowd: whether it is a group of objects, on which detections do not count.
        counts: COCO's compressed run lengths.
        size_hw: of the image.
        frequency: of the category in LVIS: rare, common or frequent; "" in other data sets.
        negatives: ids of the categories that LVIS says are not in the image.
        not_exhaustive: ids of those of which LVIS says that not all objects are annotated there.
    """

    instance_id: str
    category_id: int
    area: float
    is_crowd: bool
    counts: bytes
    size_hw: tuple[int, int]
    frequency: Literal["", "r", "c", "f"] = ""
    negatives: tuple[int, ...] = ()
    not_exhaustive: tuple[int, ...] = ()


@runtime_checkable
class GivesTargets(Protocol):
    """A data set with all that average precision needs: one of COCO's format."""

    @property
    def categories(self) -> Mapping[int, str]:
        """Return the name of each category by its id."""
        ...

    def targets(self, sample_id: str) -> list[Target]:
        """Return the annotations of an image, crowds too."""
        ...


def image_key(name: str) -> str:
    """Return what images are found by: without the suffix of a file, or zeros before a number.

    >>> image_key("000000000139.jpg"), image_key("street/a.1.png")
    ('139', 'street/a.1')
    """
    stem, dot, suffix = name.rpartition(".")
    key = stem if dot and suffix.lower() in _IMAGE_SUFFIXES else name
    return (key.lstrip("0") or "0") if key.isascii() and key.isdigit() else key


_IMAGE_SUFFIXES = ("bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp")


class Corruption(Protocol):
    """Makes a photograph worse; its dataclass fields are its parameters in TOML."""

    family: ClassVar[str]
    """Corruptions of one family share their random numbers: their levels are paired."""

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Return the worse image, (H, W, 3) uint8; `rng` is the only randomness."""
        ...


class MetricFunction(Protocol):
    """Scores T masks of one object."""

    def __call__(self, masks: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
        """Return float64 of shape (T,), or (1,) for a metric over trials.

        Args:
            masks: (T, H, W) bool, one per trial.
            target: (H, W) bool, on the same device, not empty.
        """
        ...


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        name: as registered ("boundary-iou").
        fn: the computation.
        over_trials: whether it gives one value for all trials of a condition, stored as trial -1;
            it then needs two trials.
        label: name of its mean in tables and figures ("mIoU"), "" for the metric's name.
        unit: "%" for a fraction that is shown in percent, "" for a plain number.
        higher_is_better: whether the segmenter with the higher mean is the better one.
        low: the smallest value that there can be; None for 0 of a fraction, else for no bound.
        high: the largest, likewise; None for 1 of a fraction. Stored values outside are refused.
        threshold: of the logits of the masks that it scores. At any but 0 it has no scores where a
            segmenter has no method `predict_at`.
    """

    name: str
    fn: MetricFunction
    over_trials: bool = False
    label: str = ""
    unit: Literal["%", ""] = ""
    higher_is_better: bool = True
    low: float | None = None
    high: float | None = None
    threshold: float = 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest value; infinite where there is no bound."""
        low, high = (0.0, 1.0) if self.unit == "%" else (-math.inf, math.inf)
        return low if self.low is None else self.low, high if self.high is None else self.high


@dataclass(frozen=True)
class Interaction:
    """How a conversation about an object goes on: one click after the other corrects the answer.

    Attributes:
        policy: where clicks are placed.
        gamma: see `samrobust.degradations.clicks.Click`.
        group: likewise.
        clicks: their number, the first one counted where the conversation starts with a click.
        feedback: whether a segmenter that takes mask prompts gets the logits of its last answer.
        first: which candidate of the first answer counts; None for the protocol's selection, by
            which all later answers go.
    """

    policy: ClickPolicy = "deepest"
    gamma: float = 1.0
    group: int = 0
    clicks: int = 20
    feedback: bool = True
    first: Selection | None = None


@dataclass(frozen=True)
class Turn:
    """The place of a condition in a conversation, of which each answer is a condition.

    Attributes:
        conversation: name of the condition in the protocol file.
        n_clicks: that were made so far; 0 for a box alone.
        is_first: whether its prompt is that of the degradation.
        interaction: how the conversation goes on.
    """

    conversation: str
    n_clicks: int
    is_first: bool
    interaction: Interaction


@dataclass(frozen=True)
class ImageCondition:
    """One row of a protocol's images: a corruption.

    Attributes:
        name: unique in its protocol ("fog-3").
        corruption: changes the image before it is encoded.
        kind: registered name of the corruption.
        level: position on the axis of a plot (severity).
    """

    name: str
    corruption: Corruption
    kind: str
    level: float


@dataclass(frozen=True)
class Condition:
    """One condition of a protocol: a degradation and its number of trials.

    Attributes:
        name: unique in its protocol ("box-noise-0.4"; "fog-3/box-noise-0.4" on corrupted images).
        degradation: makes the prompts, holds those that were recorded, or searches for one.
        kind: registered name of the degradation or search, or "recorded".
        trials: prompts per object; 1 if the degradation is not random, and the most that an object
            has if they were recorded.
        level: position on the axis of a plot (noise level, number of points), None for none.
        turn: its place in a conversation, None outside of one.
        image: how the image is corrupted, None for the image as it is stored.
    """

    name: str
    degradation: Degradation | Recording | Search
    kind: str
    trials: int
    level: float | None = None
    turn: Turn | None = None
    image: ImageCondition | None = None

    @property
    def is_random(self) -> bool:
        """Return whether two trials can differ."""
        clicks_at_random = self.turn is not None and self.turn.interaction.policy != "deepest"
        return self.degradation.is_random or clicks_at_random

    @property
    def gives(self) -> frozenset[PromptKind]:
        """Return the kinds of prompt that a segmenter must accept."""
        if self.turn is None:
            return self.degradation.gives
        return self.degradation.gives | {"points"}


@dataclass(frozen=True)
class Reported:
    """One published value, shown beside measured ones.

    Attributes:
        segmenter: as the paper names it.
        dataset: data set or group that it was measured on.
        condition: condition of the protocol that corresponds to it.
        metric: "iou", "boundary-iou" or "stability"; of a conversation, with the condition of its
            last click, also those of `samrobust.protocol.CLICK_METRICS`.
        value: in [0, 1], or a number of clicks.
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
        seed: first part of the random key of every prompt.
        metrics: names of the metrics.
        selection: which candidate mask is scored: the single-mask output, the candidate of best
            quality, or the candidate of best IoU with the target ("oracle").
        conditions: at least one, with unique names.
        reported: published values.
        trials: number of trials that replaces the file's own, None for the file's.
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
    """Options of a segmenter's builder, which raises on those that it does not support.

    Attributes:
        variant: of the model, "" for the default.
        checkpoint: weights file, None for the default.
        device: "cpu", "cuda" or "cuda:1".
        dtype: of the image encoder.
        frame: how images are resized for the model.
        base_checkpoint: weights file of the model that `checkpoint` was trained for, None for the
            published one.
        output: of an HQ-SAM ("sum" or "hq"), "" for the default.
        progress: called with (bytes downloaded, bytes in total) while weights are downloaded.
        compile: whether to compile a ViT image encoder, and SAM's decoder; other encoders are not
            compiled.
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
    """What the registry holds for the name of a segmenter."""

    def __call__(self, options: SegmenterOptions) -> "Segmenter[Any]":
        """Return the segmenter, ready to run.

        Raises:
            SegmenterError: an option is not supported, or the weights cannot be loaded.
        """
        ...


@dataclass(frozen=True)
class DatasetOptions:
    """Options of a data set's builder.

    Attributes:
        root: folder of its files, None for a data set without files.
        split: its split, "" for the default.
        images: folder of the images, in place of a root.
        annotations: file of the annotations, in place of a root.
        categories: names of the categories to use, () for all.
        min_area: minimum number of pixels of an object.
        labels: whether mask files are label maps, in which each value is an object.
        void: values of label maps that are neither object nor background.
        recursive: whether sub-folders are read.
        exif: whether an EXIF orientation of an image is applied.
        strict: whether an object without area is an error instead of being left out.
    """

    root: Path | None = None
    split: str = ""
    images: Path | None = None
    annotations: Path | None = None
    categories: tuple[str, ...] = ()
    min_area: int = 0
    labels: bool = False
    void: tuple[int, ...] = (255,)
    recursive: bool = False
    exif: Exif = "auto"
    strict: bool = False


class DatasetBuilder(Protocol):
    """What the registry holds for the name of a data set."""

    def __call__(self, options: DatasetOptions) -> "Dataset":
        """Return the data set; its files are listed but not yet read.

        Raises:
            DatasetError: the folder is missing or has another layout.
        """
        ...
