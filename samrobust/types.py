"""The data that crosses from one floor to the next; shapes are checked where a value is made.

Letters: `H W` image size, `T` trials, `N` prompts, `K` points, `M` candidate masks. Frame: pixels
of the original image; boxes are absolute xyxy with inclusive last pixel indices, points are xy,
arrays are indexed [y, x].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
PromptKind = Literal["box", "points"]
Selection = Literal["single", "best-quality", "oracle"]
Frame = Literal["longest-side", "squash"]

FOREGROUND, BACKGROUND = 1, 0


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
        instance_id: unique within its image ("0" where an image has one mask).
        mask: (H, W) bool, the target; not empty, made read-only.
        category: its class, "" where the data set names none.
    """

    instance_id: str
    mask: Mask
    category: str = ""

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
        instances: at least one, each mask of the image's size, ids unique.
    """

    sample_id: str
    image: Image
    instances: Sequence[Instance]

    def __post_init__(self) -> None:
        _check("image", self.image, np.uint8, (None, None, 3))
        if not self.instances:
            raise ValueError(f"sample '{self.sample_id}' has no instances")
        for instance in self.instances:
            _check("mask", instance.mask, np.bool_, self.image.shape[:2])
        if len({instance.instance_id for instance in self.instances}) < len(self.instances):
            raise ValueError(f"sample '{self.sample_id}' has an instance id twice")


@dataclass(frozen=True)
class Prompt:
    """What a user gives a segmenter for one object: a box, points or both.

    Attributes:
        box: (4,) float32 xyxy, inclusive pixel indices, or None.
        points: (K, 2) float32 xy.
        labels: (K,) int32, 1 foreground, 0 background.
    """

    box: npt.NDArray[np.float32] | None = None
    points: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    labels: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def __post_init__(self) -> None:
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
    """N prompts of one image that share a structure: all with a box or none, K points each.

    Attributes:
        boxes: (N, 4) float32, or None.
        points: (N, K, 2) float32.
        labels: (N, K) int32.
    """

    boxes: npt.NDArray[np.float32] | None
    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        n = len(self.points)
        if self.boxes is not None:
            _check("boxes", self.boxes, np.float32, (n, 4))
        _check("points", self.points, np.float32, (n, None, 2))
        _check("labels", self.labels, np.int32, self.points.shape[:2])
        if n == 0:
            raise ValueError("a prompt batch needs at least one prompt")

    def __len__(self) -> int:
        """Return N."""
        return len(self.points)

    def __getitem__(self, rows: slice) -> "PromptBatch":
        """Return the prompts of a slice."""
        boxes = None if self.boxes is None else self.boxes[rows]
        return PromptBatch(boxes, self.points[rows], self.labels[rows])

    @property
    def structure(self) -> tuple[bool, int]:
        """Return (has boxes, K): batches of equal structure can be joined."""
        return self.boxes is not None, self.points.shape[1]

    @classmethod
    def stack(cls, prompts: Sequence[Prompt]) -> "PromptBatch":
        """Return the batch of prompts of one structure, in their order.

        Raises:
            ValueError: some have a box and some not, or they differ in K.
        """
        boxes = [prompt.box for prompt in prompts if prompt.box is not None]
        if len(boxes) not in (0, len(prompts)) or len({len(p.points) for p in prompts}) != 1:
            raise ValueError("prompts of one batch must share a structure")
        return cls(
            np.stack(boxes) if boxes else None,
            np.stack([prompt.points for prompt in prompts]),
            np.stack([prompt.labels for prompt in prompts]),
        )

    @classmethod
    def join(cls, batches: Sequence["PromptBatch"]) -> "PromptBatch":
        """Return one batch of several of equal structure, in their order."""
        boxes = [batch.boxes for batch in batches if batch.boxes is not None]
        return cls(
            np.concatenate(boxes) if boxes else None,
            np.concatenate([batch.points for batch in batches]),
            np.concatenate([batch.labels for batch in batches]),
        )


@dataclass(frozen=True)
class Prediction:
    """What a segmenter answers to N prompts, on its own device.

    Attributes:
        masks: (N, M, H, W) bool, M candidates a prompt, in pixels of the original image.
        quality: (N, M) float32, the model's own estimate of each candidate's IoU; zeros where a
            model has none (it must then give one candidate); NaN where it has no answer, as its
            logits are not finite: an evaluation then stores nothing of the image.
    """

    masks: "torch.Tensor"
    quality: "torch.Tensor"

    def __post_init__(self) -> None:
        if self.masks.ndim != 4 or self.quality.shape != self.masks.shape[:2]:
            raise ValueError(
                f"masks must be (N, M, H, W) and quality (N, M), got shapes "
                f"{tuple(self.masks.shape)} and {tuple(self.quality.shape)}"
            )


@dataclass(frozen=True)
class SegmenterInfo:
    """What a segmenter is and what it takes; stored with every run.

    Attributes:
        name: as registered ("sam").
        prompts: the kinds of prompt that it accepts.
        variant: which of its models ("vit_b"), "" where there is one.
        frame: how images reach the model, None where it works on the original image.
        dtype: of the image encoder.
        multimask: whether it has several candidates to choose from.
        is_control: needs no learning: stands first in tables.
        checkpoint_sha256: of the weights file, "" where there is none.
        settings: whatever else can change a score.
        trained_on: collections that it has seen images of, as `samrobust.origins` names them.
    """

    name: str
    prompts: frozenset[PromptKind]
    variant: str = ""
    frame: Frame | None = None
    dtype: str = "float32"
    multimask: bool = False
    is_control: bool = False
    checkpoint_sha256: str = ""
    settings: Mapping[str, str | float] = field(default_factory=dict)
    trained_on: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Return the name for tables and figures: name and variant."""
        return f"{self.name} {self.variant}".strip()


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set is; stored with every run.

    Attributes:
        name: as registered ("coco").
        split: part of it ("val2017"), "" where there are no parts.
        fingerprint: a hash that changes when its files or settings do.
        folder: the name of its root, "" where it needs none: tells two of one format apart.
        group: the group whose members are averaged together in published tables, "" for none.
        group_members: the names of that group's members.
        part: the name of what chose some of its images, "" where all are taken.
    """

    name: str
    split: str
    fingerprint: str
    folder: str = ""
    group: str = ""
    group_members: tuple[str, ...] = ()
    part: str = ""

    @property
    def key(self) -> str:
        """Return name and split: the data set's part in the key of every prompt."""
        return f"{self.name}/{self.split}" if self.split else self.name

    @property
    def label(self) -> str:
        """Return the name for tables and figures: key, folder and part."""
        whole = f"{self.key} in {self.folder}" if self.folder else self.key
        return f"{whole}, {self.part}" if self.part else whole
