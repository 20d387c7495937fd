"""Bootstrap over images, sign-flip test, Holm's correction, and classes of objects."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from samrobust.seeding import keyed_generator
from samrobust.types import Floats

N_RESAMPLES = 2000
"""Bootstrap samples; each end of an interval then varies by about 1.5 % of its width."""
INTERVAL = (0.025, 0.975)
"""Quantiles of the bootstrap samples: a 95 % percentile interval."""
N_FLIPS = 10_000
"""Sign flips of the test, the observed signs included: the smallest p is one in so many."""
TAIL = 0.1
"""Share of the trials that is the tail."""

_WEIGHTS_AT_ONCE = 2**24  # numbers, 128 MiB
_TAIL_BLOCKS = 256  # of values that follow each other; the tail's end is interpolated inside of one
_TAIL_REACH = 0.4  # share of the trials among which the tail of every resample is looked for
_FEW_IMAGES = 30  # below, it is looked for among all
_ROUNDING = 1e-12  # relative: sums of the same numbers in another order are equal
_DEVIATIONS = 10  # standard deviations to both sides in which the end of a tail is looked for
Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.floating]


def bootstrap_weights(n_images: int, *, key: str) -> Iterator[Floats]:
    """Yield how often each image stands in each bootstrap sample, (R, I) float64, some R at a time.

    Args:
        n_images: I; nothing is yielded where it is 1.
        key: the same key gives the same samples.
    """
    rng = keyed_generator("bootstrap", key)
    step = max(1, _WEIGHTS_AT_ONCE // n_images)
    starts = range(0, N_RESAMPLES if n_images > 1 else 0, step)

    def draw(start: int) -> Floats:
        size = min(step, N_RESAMPLES - start)
        times = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=size)
        return times.astype(np.float64)

    with ThreadPoolExecutor(1) as pool:  # draws the next samples while the caller sums over these
        drawn: list[Future[Floats]] = []
        for start in starts:
            drawn.append(pool.submit(draw, start))
            if len(drawn) > 1:
                yield drawn.pop(0).result()
        yield from (future.result() for future in drawn)


class Tail:
    """The mean of the lowest tenth of some values, also where their images are resampled.

    The tenth is of the sum of weights, and the value at its end counts in part. Among more than 256
    values, a resample's end is interpolated inside a block of values that follow each other.

    Args:
        values: (N,), N >= 1.
        owners: (N,) the image of each, in [0, n_images).
        n_images: I.
    """

    def __init__(self, values: Values, owners: Ints, *, n_images: int) -> None:
        share = 1.0 if n_images < _FEW_IMAGES else _TAIL_REACH
        reach = int(np.ceil(share * len(values)))
        n_blocks = min(_TAIL_BLOCKS, reach)
        self._n_values = len(values)
        self._of_image = np.bincount(owners, minlength=n_images).astype(np.float64)
        first, last = self._window(values, owners, n_blocks=n_blocks, reach=reach)
        order = _lowest(values, -(-last * reach // n_blocks))
        lowest = values[order].astype(np.float64)
        self._mean = self._exact_mean(lowest)
        # blocks before the window are always in the tail: they are one
        blocks = np.maximum(np.arange(len(order)) * n_blocks // reach, first) - first
        where = (blocks, owners[order])
        shape = (last - first, n_images)
        self._counts = sparse.csr_matrix((np.ones(len(order)), where), shape)
        self._sums = sparse.csr_matrix((lowest, where), shape)

    def _window(
        self, values: Values, owners: Ints, *, n_blocks: int, reach: int
    ) -> tuple[int, int]:
        """Return the first block and the block after the last in which any tail will end.

        The end varies between resamples by the deviation of a sum over images.
        """
        if len(self._of_image) < _FEW_IMAGES:
            return 0, n_blocks
        wanted = TAIL * self._n_values
        low = owners[values <= np.partition(values, int(wanted))[int(wanted)]]
        excess = np.bincount(low, minlength=len(self._of_image)) - TAIL * self._of_image
        margin = _DEVIATIONS * float(np.sqrt((excess**2).sum()))
        first, last = (n_blocks * (wanted + sign * margin) / reach for sign in (-1, 1))
        return max(0, int(first) - 2), min(n_blocks, int(last) + 3)

    def _exact_mean(self, lowest: Floats) -> float:
        wanted = TAIL * self._n_values
        lowest = lowest[: int(wanted) + 1]
        weights = np.minimum(np.maximum(wanted - np.arange(len(lowest)), 0), 1)
        return float((weights * lowest).sum() / weights.sum())

    @property
    def mean(self) -> float:
        """Return it for the images as they are, exactly."""
        return self._mean

    def means(self, weights: Floats) -> Floats:
        """Return (R,) it for each column of (I, R) weights of the images."""
        counts: Floats = np.asarray(self._counts @ weights)  # blocks x resamples
        sums: Floats = np.asarray(self._sums @ weights)
        wanted = TAIL * (self._of_image @ weights)
        before = np.cumsum(counts, axis=0) - counts
        taken = np.clip(wanted - before, 0, counts)
        shares = np.divide(taken, counts, out=np.zeros_like(taken), where=counts > 0)
        tail: Floats = (shares * sums).sum(axis=0) / taken.sum(axis=0)
        return tail


def _lowest(values: Values, n: int) -> npt.NDArray[np.intp]:
    """Return the places of the n lowest values in ascending order, equal ones as they stand."""
    if n < len(values):
        chosen = np.flatnonzero(values <= np.partition(values, n - 1)[n - 1])
    else:
        chosen = np.arange(len(values))
    order: npt.NDArray[np.intp] = chosen[np.argsort(values[chosen], kind="stable")][:n]
    return order


def sign_flip_test(contributions: Floats, *, key: str) -> Floats:
    """Return the two-sided p of each difference, under flips of the sign of whole images.

    If two segmenters were alike, each image's difference could as well have the other sign. All
    flips are tried where there are at most 10,000, else 9,999 random ones and the observed signs.

    Args:
        contributions: (I, D), of each image to each of D differences, which are their sums.
        key: the same key gives the same flips.

    Returns:
        (D,) in (0, 1].
    """
    slack = _ROUNDING * np.abs(contributions).sum(axis=0)
    least = np.abs(contributions.sum(axis=0)) - slack
    n_flips, n_as_large = 0, np.zeros(contributions.shape[1])
    for signs in _signs(len(contributions), key=key):
        n_as_large += (np.abs(signs @ contributions) >= least).sum(axis=0)
        n_flips += len(signs)
    return n_as_large / n_flips


def holm(p: Floats) -> Floats:
    """Return p values corrected for their number by Holm's step-down method (Holm 1979).

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected


def _signs(n_images: int, *, key: str) -> Iterator[Floats]:
    """Yield (F, I) signs, some F at a time; the observed ones, all 1, are among them."""
    if 2**n_images <= N_FLIPS:
        bits = (np.arange(2**n_images)[:, None] >> np.arange(n_images)) & 1
        yield 1 - 2 * bits.astype(np.float64)
        return
    rng = keyed_generator("sign-flip", key)
    step = max(1, _WEIGHTS_AT_ONCE // n_images)
    for start in range(0, N_FLIPS, step):
        shape = (min(step, N_FLIPS - start), n_images)
        signs = 1 - 2 * rng.integers(0, 2, shape, dtype=np.int8).astype(np.float64)
        if start == 0:
            signs[0] = 1
        yield signs


FRAME_SIDE = 1024
"""Pixels of the longer side of an image in SAM's frame."""


@dataclass(frozen=True)
class Kind:
    """A way to put objects into classes by a number.

    Attributes:
        number: of objects, with the columns of a run's; NaN where it is not known.
        words: what the number is.
        below: class -> the number that its objects stay below.
    """

    number: Callable[[pd.DataFrame], "pd.Series[float]"]
    words: str
    below: Mapping[str, float]


def thinness(objects: pd.DataFrame) -> "pd.Series[float]":
    """Return perimeter^2 / area of each object; at least about 4 pi; NaN where it is not known."""
    return objects["perimeter"] ** 2 / objects["area"]


def _frame_size(objects: pd.DataFrame) -> "pd.Series[float]":
    sides = objects["image_side"].where(objects["image_side"] > 0)
    return FRAME_SIDE * objects["area"] ** 0.5 / sides


KINDS = {
    "size": Kind(
        lambda objects: objects["area"],
        "area in pixels",
        {"small": 32**2, "medium": 96**2, "large": np.inf},  # COCO's
    ),
    # a disc has 4 pi = 12.6, a square 16, a bar of 1 x 4 25, a bar of 1 x 13 60
    "thinness": Kind(
        thinness, "perimeter^2 / area", {"compact": 25.0, "winding": 60.0, "thin": np.inf}
    ),
    # an embedding of SAM's has one place per 16 pixels
    "frame-size": Kind(
        _frame_size,
        "square root of the area in pixels of a frame of 1024",
        {"to-32": 32, "32-to-128": 128, "128-to-384": 384, "from-384": np.inf},
    ),
    "crowding": Kind(
        lambda objects: objects["others"].where(objects["others"] >= 0),
        "number of other objects with their centre in the exact box",
        {"alone": 1, "1-2-others": 3, "3-others-or-more": np.inf},
    ),
}
SUPERGROUP = "supergroup"
"""The kind of the classes that a data set groups its categories in."""


def classes_of(objects: pd.DataFrame) -> dict[tuple[str, str], npt.NDArray[np.bool_]]:
    """Return which objects are of each class that has any, as (kind, class) -> (O,) bool.

    Args:
        objects: with the columns of a run's; an object of which something is not known is in no
            class of that kind.
    """
    found = {}
    for kind, by in KINDS.items():
        values = by.number(objects)
        at_least = 0.0
        for name, below in by.below.items():
            chosen = ((values >= at_least) & (values < below)).to_numpy()
            if chosen.any():
                found[kind, name] = chosen
            at_least = below
    groups = objects["supercategory"].fillna("")
    for name in sorted({*groups} - {""}):
        found[SUPERGROUP, name] = (groups == name).to_numpy()
    return found
