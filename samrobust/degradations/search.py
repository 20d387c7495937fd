"""The worst prompt that a person might still give: where the search for it starts, and goes on.

A search sees prompts and the IoU that a segmenter reaches with them, so it works for any segmenter;
one by gradient also sees gradients. All candidates are plausible: boxes as near to the tight one as
people's, points as deep inside of the object as clicks (docs/sources/peers.md 5.3 and 5.4).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from samrobust.degradations.human import MOST, HumanBox, box_loss, human_percentile
from samrobust.geometry import clip_box, depths, mask_to_box
from samrobust.types import FOREGROUND, Asked, Floats, Mask, PromptBatch, PromptKind, SearchSpace

SIGMA = 0.08
"""Standard deviation of the steps of the first round, in sides of the object; halved each round."""
LEAST_STEP = 1.0
"""Pixels; of the standard deviation of steps between points, which are whole pixels."""
_HALVINGS = 20
"""Of the way back to the tight box, by which a box becomes plausible."""
_LIMITS = {"draws": 1_000, "rounds": 1_000, "parents": 1_000, "children": 1_000}
_MOST_ASKED = 20_000
FADING = 0.9, 0.999
"""Of Adam's means of gradients and of their squares, per step (Kingma and Ba 2015)."""
_NO_GRADIENT = 1e-8
"""Adam's epsilon."""


@dataclass(frozen=True)
class _Search:
    """The parameters of a search.

    It starts with the exact prompt and with plausible ones.

    Attributes:
        percentile: of people's prompts; those that are worse are not asked.
        draws: prompts that it starts with, besides the exact one.
        rounds: of going on.
        parents: prompts of lowest IoU that it goes on from.
    """

    is_random: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    percentile: float = 95.0
    draws: int = 64
    rounds: int = 4
    parents: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= MOST:
            raise ValueError(
                f"percentile must be above 0 and at most {MOST:g}, got {self.percentile}"
            )
        for name, most in _LIMITS.items():
            if not 1 <= (value := getattr(self, name, 1)) <= most:
                raise ValueError(f"{name} must be in [1, {most}], got {value}")
        if self.n_asked > _MOST_ASKED:
            raise ValueError(f"{self.n_asked} prompts an object, at most {_MOST_ASKED} are allowed")

    @property
    def n_asked(self) -> int:
        """Return how many prompts a segmenter is asked for an object."""
        return 1 + self.draws + self.rounds * self.parents


@dataclass(frozen=True)
class _Sampling(_Search):
    """The parameters of a search that needs no gradients.

    In each round the parents, the prompts of lowest IoU so far, have as many children as each
    other, at normally distributed steps.

    Attributes:
        children: of each parent.
    """

    children: int = 4

    @property
    def n_asked(self) -> int:
        """Return how many prompts a segmenter is asked for an object."""
        return 1 + self.draws + self.rounds * self.parents * self.children

    @property
    def one_child(self) -> tuple[float, int, int, int]:
        """Return the parameters of a search of as many prompts, with one child a parent."""
        return self.percentile, self.draws, self.rounds * self.children, self.parents

    def lowest(self, asked: Asked) -> PromptBatch:
        """Return the parents of a round, the lowest first."""
        order = np.argsort(asked.ious, kind="stable")[: self.parents]
        return PromptBatch.join([asked.prompts[i : i + 1] for i in order])


@dataclass(frozen=True)
class WorstBox(_Sampling):
    """Takes the box of lowest IoU of those that are as near to the tight one as people's."""

    family: ClassVar[str] = "box-search"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    takes: ClassVar[Literal["lowest", "highest"]] = "lowest"

    def start(self, mask: Mask, rng: np.random.Generator) -> SearchSpace:
        """Return the boxes of an object; `rng` is the only randomness."""
        return _SampledBoxes(self, mask, rng)

    def by_gradient(self) -> tuple[str, "WorstBoxByGradient"]:
        """Return name and search that starts as this one, and asks as many boxes by gradient."""
        return "worst-box-by-gradient", WorstBoxByGradient(*self.one_child)


@dataclass(frozen=True)
class BestBox(WorstBox):
    """Takes the box of highest IoU of all that the search for the worst asks."""

    takes: ClassVar[Literal["lowest", "highest"]] = "highest"

    def by_gradient(self) -> tuple[str, "WorstBoxByGradient"]:
        """Return name and search that starts as this one, and asks as many boxes by gradient."""
        return "best-box-by-gradient", BestBoxByGradient(*self.one_child)


@dataclass(frozen=True)
class WorstBoxByGradient(_Search):
    """As `WorstBox`, but goes on by gradients of a dice loss (BREPS, docs/sources/peers.md 1.1).

    From the boxes of lowest IoU of the start, each parent is moved by a step of Adam a round, all
    parents at once, and back to what is plausible. Differs: BREPS starts at the tight box alone,
    its step is a share of the image's diagonal, and how plausible a box is is a term of its loss.

    Attributes:
        rate: of Adam, in sides of the object.
    """

    family: ClassVar[str] = "box-search-by-gradient"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    takes: ClassVar[Literal["lowest", "highest"]] = "lowest"
    needs_gradients: ClassVar[bool] = True
    rounds: int = 16
    rate: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must be above 0 and at most 1, got {self.rate}")

    def start(self, mask: Mask, rng: np.random.Generator) -> SearchSpace:
        """Return the boxes of an object; `rng` is the only randomness."""
        return _DescendedBoxes(self, mask, rng)


@dataclass(frozen=True)
class BestBoxByGradient(WorstBoxByGradient):
    """Takes the box of highest IoU of all that the search for the worst asks."""

    takes: ClassVar[Literal["lowest", "highest"]] = "highest"


@dataclass(frozen=True)
class WorstPoint(_Sampling):
    """Takes the point of lowest IoU of the object's pixels that people might click.

    A pixel is clicked with a probability proportional to its distance to the outside; its
    percentile is the probability of those that are deeper inside.
    """

    family: ClassVar[str] = "point-search"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"points"})
    takes: ClassVar[Literal["lowest", "highest"]] = "lowest"

    def start(self, mask: Mask, rng: np.random.Generator) -> SearchSpace:
        """Return the points of an object; `rng` is the only randomness."""
        return _Points(self, mask, rng)


@dataclass(frozen=True)
class BestPoint(WorstPoint):
    """Takes the point of highest IoU of all that the search for the worst asks."""

    takes: ClassVar[Literal["lowest", "highest"]] = "highest"


class _Boxes:
    """The plausible boxes of an object, of which some are drawn."""

    def __init__(self, search: _Search, mask: Mask, rng: np.random.Generator) -> None:
        self._tight, self._size_hw = mask_to_box(mask), (mask.shape[0], mask.shape[1])
        self._percentile = search.percentile
        self._sides = np.tile(self._tight[2:] - self._tight[:2] + 1, 2)
        human = HumanBox()
        drawn = [human.around(self._tight, self._size_hw, rng) for _ in range(search.draws)]
        exact = self._tight.astype(np.float32)
        self.starts = _batch(boxes=[exact, *map(self._plausible, drawn)])

    def percentiles(self, prompts: PromptBatch) -> Floats:
        return np.array([self._percentile_of(box) for box in np.asarray(prompts.boxes)])

    def _percentile_of(self, box: npt.NDArray[np.floating]) -> float:
        return human_percentile(box_loss(box, self._tight))

    def _plausible(self, box: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Return a box, clipped and moved towards the tight one as far as it must be.

        Along that way the loss falls (docs/sources/peers.md 5.3).
        """
        least = np.minimum(self._tight[2:] - self._tight[:2], 1)
        clipped = clip_box(box.astype(np.float64), self._size_hw, least_wh=least)
        if self._percentile_of(clipped) <= self._percentile:
            return clipped
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_plausible = self._percentile_of(self._between(clipped, middle)) <= self._percentile
            low, high = (middle, high) if is_plausible else (low, middle)
        return self._between(clipped, low)

    def _between(self, box: npt.NDArray[np.float32], share: float) -> npt.NDArray[np.float32]:
        return (self._tight + share * (box - self._tight)).astype(np.float32)


class _SampledBoxes(_Boxes):
    """See `samrobust.types.SearchSpace`."""

    def __init__(self, search: WorstBox, mask: Mask, rng: np.random.Generator) -> None:
        super().__init__(search, mask, rng)
        self._search = search
        self._steps = rng.standard_normal((search.rounds, search.parents * search.children, 4))

    def after(self, number: int, asked: Asked) -> PromptBatch:
        parents = self._search.lowest(asked)
        boxes = np.repeat(np.asarray(parents.boxes, np.float64), self._search.children, axis=0)
        steps = SIGMA / 2**number * self._steps[number, : len(boxes)] * self._sides
        return _batch(boxes=[self._plausible(box) for box in boxes + steps])


class _DescendedBoxes(_Boxes):
    """See `samrobust.types.SearchSpace`."""

    def __init__(self, search: WorstBoxByGradient, mask: Mask, rng: np.random.Generator) -> None:
        super().__init__(search, mask, rng)
        self._search = search

    def after(self, number: int, asked: Asked) -> PromptBatch:
        if asked.gradients is None:
            raise ValueError("a search by gradient was given none")
        n = len(self.starts)
        parents = np.argsort(asked.ious[:n], kind="stable")[: self._search.parents]
        # round by round, each parent's boxes at the same place
        places = np.concatenate([parents, np.arange(n, len(asked.ious))])
        gradients = asked.gradients[places].reshape(number + 1, -1, 4) * self._sides
        boxes = np.asarray(asked.prompts.boxes, np.float64)[places[-len(parents) :]]
        ascent = self._search.rate * adam_step(gradients) * self._sides
        return _batch(boxes=[self._plausible(box) for box in boxes + ascent])


def adam_step(gradients: Floats) -> Floats:
    """Return (..., ) the step of Adam (Kingma and Ba 2015) after gradients (T, ...), at rate 1."""
    ages = np.arange(len(gradients))[::-1]
    mean, square = (
        np.tensordot(weights / weights.sum(), values, axes=1)
        for weights, values in zip(
            (fading**ages for fading in FADING), (gradients, gradients**2), strict=True
        )
    )
    step: Floats = mean / (np.sqrt(square) + _NO_GRADIENT)
    return step


class _Points:
    """The plausible points of an object; see `samrobust.types.SearchSpace`."""

    def __init__(self, search: WorstPoint, mask: Mask, rng: np.random.Generator) -> None:
        depth, (y0, x0) = depths(mask)
        self._offset = np.array([x0, y0])
        self._percentiles = _deeper_mass(depth)
        plausible = (depth > 0) & (self._percentiles <= search.percentile)
        self._nearest: npt.NDArray[np.int32] = ndimage.distance_transform_edt(
            ~plausible, return_distances=False, return_indices=True
        )
        yx = np.argwhere(plausible)
        mass = depth[plausible] / depth[plausible].sum()
        drawn = yx[rng.choice(len(yx), search.draws, p=mass)]
        self._search = search
        self._steps = rng.standard_normal((search.rounds, search.parents * search.children, 2))
        deepest = np.argwhere(depth == depth.max())[:1]
        self.starts = self._prompts(np.concatenate([deepest, drawn]))

    def after(self, number: int, asked: Asked) -> PromptBatch:
        yx = np.repeat(self._places(self._search.lowest(asked)), self._search.children, axis=0)
        sides = np.array(self._percentiles.shape)
        steps = np.maximum(SIGMA / 2**number * sides, LEAST_STEP) * self._steps[number, : len(yx)]
        moved = np.clip(np.rint(yx + steps).astype(np.int64), 0, sides - 1)
        return self._prompts(self._nearest[:, moved[:, 0], moved[:, 1]].T.astype(np.int64))

    def percentiles(self, prompts: PromptBatch) -> Floats:
        y, x = self._places(prompts).T
        found: Floats = self._percentiles[y, x]
        return found

    def _places(self, prompts: PromptBatch) -> npt.NDArray[np.int64]:
        xy: npt.NDArray[np.int64] = prompts.points[:, 0].astype(np.int64) - self._offset
        return xy[:, ::-1]

    def _prompts(self, yx: npt.NDArray[np.int64]) -> PromptBatch:
        return _batch(points=(yx[:, ::-1] + self._offset)[:, None])


def _deeper_mass(depth: Floats) -> Floats:
    """Return in percent, for each pixel, the share of the sum of depths that is deeper inside."""
    values, place, counts = np.unique(depth, return_inverse=True, return_counts=True)
    mass = values * counts
    deeper = mass.sum() - np.cumsum(mass)
    shares: Floats = 100 * np.maximum(deeper, 0)[place].reshape(depth.shape) / mass.sum()
    return shares


def _batch(
    *, boxes: list[npt.NDArray[np.float32]] | None = None, points: npt.ArrayLike | None = None
) -> PromptBatch:
    """Return boxes (N, 4), or points (N, K, 2) of the foreground."""
    n = len(boxes or ())
    at = np.zeros((n, 0, 2), np.float32) if points is None else np.asarray(points, np.float32)
    labels = np.full(at.shape[:2], FOREGROUND, np.int32)
    return PromptBatch(None if boxes is None else np.stack(boxes), at, labels)
