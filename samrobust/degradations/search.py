"""The worst prompt that a person might still give: where the search for it starts, and goes on.

A search sees prompts and the IoU that a segmenter reaches with them, so it works for any segmenter.
Its candidates are all plausible: boxes as near to the tight one as people's, points as deep inside
of the object as clicks (docs/sources/peers.md 5.3 and 5.4).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from samrobust.degradations.human import MOST, HumanBox, box_loss, human_percentile
from samrobust.geometry import clip_box, depths, mask_to_box
from samrobust.types import FOREGROUND, Floats, Mask, PromptBatch, PromptKind, SearchSpace

SIGMA = 0.08
"""Standard deviation of the steps of the first round, in sides of the object; halved each round."""
LEAST_STEP = 1.0
"""Pixels; of the standard deviation of steps between points, which are whole pixels."""
_HALVINGS = 20
"""Of the way back to the tight box, by which a box becomes plausible."""
_LIMITS = {"draws": 1_000, "rounds": 100, "parents": 1_000, "children": 1_000}
_MOST_ASKED = 20_000


@dataclass(frozen=True)
class _Search:
    """The parameters of a search.

    It starts with the exact prompt and with plausible ones. In each round the parents, the prompts
    of lowest IoU so far, have as many children as each other, at normally distributed steps.

    Attributes:
        percentile: of people's prompts; those that are worse are not asked.
        draws: prompts that it starts with, besides the exact one.
        rounds: of going on.
        parents: in a round.
        children: of each parent.
    """

    is_random: ClassVar[bool] = False
    percentile: float = 95.0
    draws: int = 64
    rounds: int = 4
    parents: int = 8
    children: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= MOST:
            raise ValueError(
                f"percentile must be above 0 and at most {MOST:g}, got {self.percentile}"
            )
        for name, most in _LIMITS.items():
            if not 1 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name} must be in [1, {most}], got {value}")
        if self.n_asked > _MOST_ASKED:
            raise ValueError(f"{self.n_asked} prompts an object, at most {_MOST_ASKED} are allowed")

    @property
    def n_asked(self) -> int:
        """Return how many prompts a segmenter is asked for an object."""
        return 1 + self.draws + self.rounds * self.parents * self.children


@dataclass(frozen=True)
class WorstBox(_Search):
    """Takes the box of lowest IoU of those that are as near to the tight one as people's."""

    family: ClassVar[str] = "box-search"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    takes: ClassVar[Literal["lowest", "highest"]] = "lowest"

    def start(self, mask: Mask, rng: np.random.Generator) -> SearchSpace:
        """Return the boxes of an object; `rng` is the only randomness."""
        return _Boxes(self, mask, rng)


@dataclass(frozen=True)
class BestBox(WorstBox):
    """Takes the box of highest IoU of all that the search for the worst asks."""

    takes: ClassVar[Literal["lowest", "highest"]] = "highest"


@dataclass(frozen=True)
class WorstPoint(_Search):
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
    """The plausible boxes of an object; see `samrobust.types.SearchSpace`."""

    def __init__(self, search: WorstBox, mask: Mask, rng: np.random.Generator) -> None:
        self._tight, self._size_hw = mask_to_box(mask), (mask.shape[0], mask.shape[1])
        self._percentile, self._children = search.percentile, search.children
        self._sides = np.tile(self._tight[2:] - self._tight[:2] + 1, 2)
        human = HumanBox()
        drawn = [human.around(self._tight, self._size_hw, rng) for _ in range(search.draws)]
        self._steps = rng.standard_normal((search.rounds, search.parents * search.children, 4))
        exact = self._tight.astype(np.float32)
        self.starts = _batch(boxes=[exact, *map(self._plausible, drawn)])

    def after(self, number: int, parents: PromptBatch) -> PromptBatch:
        boxes = np.repeat(np.asarray(parents.boxes, np.float64), self._children, axis=0)
        steps = SIGMA / 2**number * self._steps[number, : len(boxes)] * self._sides
        return _batch(boxes=[self._plausible(box) for box in boxes + steps])

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
        self._children = search.children
        self._steps = rng.standard_normal((search.rounds, search.parents * search.children, 2))
        deepest = np.argwhere(depth == depth.max())[:1]
        self.starts = self._prompts(np.concatenate([deepest, drawn]))

    def after(self, number: int, parents: PromptBatch) -> PromptBatch:
        yx = np.repeat(self._places(parents), self._children, axis=0)
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
