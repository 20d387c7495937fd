"""How much scores differ between raters and within one, and how ambiguous prompts are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse, stats
from scipy.sparse import csgraph

from samrobust.errors import RunError
from samrobust.prompt_files import AGAIN, BETWEEN_RATERS, LOCAL
from samrobust.report.columns import Statistic
from samrobust.report.layout import Spread, Table, interval_text, records, table_of_rows
from samrobust.report.scores import iou_of_trials
from samrobust.report.statistics import INTERVAL
from samrobust.runs.store import Run, read_raters
from samrobust.types import Floats

if TYPE_CHECKING:
    from samrobust.report.summary import Section

Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class RaterSplit:
    """The spread of a score that prompts cause, split into that between raters and within one.

    The model is score = object + rater + rest, with raters and rest random. The intervals are those
    of the analysis of variance: exact for normal scores of a balanced design (Searle, Casella and
    McCulloch 1992, ch. 3).

    Attributes:
        n_raters: with scores of objects that another rater prompted too.
        between: standard deviation of raters' means on the same objects.
        within: standard deviation of what is left.
        icc: between^2 / (between^2 + within^2), the share of the variance that is the raters'.
        between_ends: 95 % interval of `between`.
        within_ends: of `within`.
        icc_ends: of `icc`.
    """

    n_raters: int
    between: float
    within: float
    icc: float
    between_ends: tuple[float, float]
    within_ends: tuple[float, float]
    icc_ends: tuple[float, float]


def split_raters(scores: Floats, objects: Places, raters: Places) -> RaterSplit | None:
    """Return the split of scores; None where too few objects were prompted by several raters.

    Objects are fixed and raters random effects: Henderson's method III, which needs no balance.

    Args:
        scores: (N,).
        objects: (N,) the object of each.
        raters: (N,) the rater of each.
    """
    objects, raters = (np.unique(each, return_inverse=True)[1] for each in (objects, raters))
    n_scores, n_objects, n_raters = len(scores), objects.max() + 1, raters.max() + 1
    ones = np.ones(n_scores)
    counts = sparse.csr_matrix((ones, (objects, raters)), (n_objects, n_raters))
    per_object = np.bincount(objects)
    centred = scores - (np.bincount(objects, scores) / per_object)[objects]
    # raters after objects: the normal equations, and a solution for each connected design
    shared = counts.T @ sparse.diags_array(1 / per_object) @ counts
    normal = np.diag(np.bincount(raters).astype(np.float64)) - shared.toarray()
    n_parts, part = csgraph.connected_components(shared)
    together = (part[:, None] == part).astype(np.float64)
    effects = np.linalg.solve(normal + together, np.bincount(raters, centred))
    of_raters = float(effects @ np.bincount(raters, centred))
    n_between = n_raters - n_parts
    n_within = n_scores - n_objects - n_between
    if n_between < 1 or n_within < 1:
        return None
    squares = float(centred @ centred) - of_raters
    within, size = max(squares, 0) / n_within, float(np.trace(normal)) / n_between
    return _split(n_raters, of_raters / n_between, within, size, (n_between, n_within))


def _split(
    n_raters: int, mean_square: float, within: float, size: float, freedom: tuple[int, int]
) -> RaterSplit:
    """Return the split of two mean squares, of `size` scores a rater."""
    n_between, n_within = freedom
    ratio = mean_square / within if within > 0 else np.inf
    low, high = (ratio / stats.f(*freedom).ppf(1 - end) for end in INTERVAL[::-1])
    low, high = sorted((low, high))

    def icc(of_ratio: float) -> float:
        excess = max(of_ratio - 1, 0)
        return 1.0 if np.isinf(excess) else excess / (excess + size)

    def deviation(of_ratio: float, quantile: float) -> float:
        # Williams and Tukey: the interval of the mean square, less what is the rest's
        excess = 1 - 1 / of_ratio if of_ratio > 1 else 0
        return float(np.sqrt(n_between * mean_square * excess / (size * quantile)))

    chi = [stats.chi2(n_between).ppf(1 - end) for end in INTERVAL]
    rest = [stats.chi2(n_within).ppf(1 - end) for end in INTERVAL]
    return RaterSplit(
        n_raters,
        float(np.sqrt(max(mean_square - within, 0) / size)),
        float(np.sqrt(within)),
        icc(ratio),
        (deviation(low, chi[0]), deviation(high, chi[1])),
        (
            float(np.sqrt(n_within * within / rest[0])),
            float(np.sqrt(n_within * within / rest[1])),
        ),
        (icc(low), icc(high)),
    )


COLUMNS = (
    *("segmenter", "condition", "n_raters"),
    *(
        f"{name}{end}"
        for name in ("between", "within", "icc", "agreement", "local")
        for end in ("", "_low", "_high")
    ),
)
"""Of the table of raters."""


def rater_table(
    runs: Sequence[Run], segmenters: Sequence[str], objects: pd.DataFrame, table: pd.DataFrame
) -> pd.DataFrame:
    """Return `Section.raters`.

    Args:
        runs: of the section.
        segmenters: their labels.
        objects: `sample_id` and `instance_id` of each, in the order of the scores.
        table: `Section.table`.

    Raises:
        RunError: a file of a run cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for run, segmenter in zip(runs, segmenters, strict=False):  # a group of data sets has no runs
        raters = read_raters(run.folder)
        raters = raters[raters["rater"] != ""]
        if raters["rater"].nunique() < 2:
            continue
        raters = raters.assign(kind=raters["condition"].str.removesuffix(AGAIN))
        mine = table[table["segmenter"] == segmenter].set_index("condition")
        for kind, given in raters.groupby("kind", sort=False):
            split = _split_of(run, given, objects)
            if split is not None:
                row = {"segmenter": segmenter, "condition": str(kind), "n_raters": split.n_raters}
                for name in ("between", "within", "icc"):
                    low, high = getattr(split, f"{name}_ends")
                    row |= {name: getattr(split, name), f"{name}_low": low, f"{name}_high": high}
                is_box = bool(given["loss"].notna().all())
                for name, condition in (("agreement", str(kind)), ("local", LOCAL)):
                    for end in ("", "_low", "_high") if is_box or name == "agreement" else ():
                        value = mine[f"{BETWEEN_RATERS}{end}"].get(condition, np.nan)
                        row[f"{name}{end}"] = value
                rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _split_of(run: Run, given: pd.DataFrame, objects: pd.DataFrame) -> RaterSplit | None:
    """Return the split of the IoU of some recorded prompts; None where it cannot be had.

    Raises:
        RunError: a prompt is of a trial that there is not.
    """
    places = objects[["sample_id", "instance_id"]].assign(place=np.arange(len(objects)))
    given = given.merge(places, on=["sample_id", "instance_id"])
    found = iou_of_trials(run, [str(name) for name in given["condition"].unique()])
    ious = np.full(len(given), np.nan)
    for name, trials in found.items():
        chosen = (given["condition"] == name).to_numpy()
        where = given.loc[chosen, ["place", "trial"]].to_numpy()
        if not ((where[:, 1] >= 0) & (where[:, 1] < trials.shape[1])).all():
            raise RunError(f"{run.folder}: has raters of trials that are not of its protocol")
        ious[chosen] = trials[where[:, 0], where[:, 1]]
    scored = ~np.isnan(ious)
    if not scored.any():
        return None
    rater = given["rater"].astype("category").cat.codes.to_numpy()
    return split_raters(ious[scored], given["place"].to_numpy()[scored], rater[scored])


_SPLIT = (
    Statistic("between", "std between", "%", higher_is_better=False),
    Statistic("within", "std within", "%", higher_is_better=False),
    Statistic("icc", "ICC", "%", higher_is_better=False),
)
_AMBIGUITY = (
    Statistic("agreement", "of different raters", "%", higher_is_better=True),
    Statistic("local", "of boxes at p25", "%", higher_is_better=True),
)


def rater_tables(section: "Section", spread: Spread, *, where: str) -> Iterator[Table]:
    """Yield what differs between raters and how ambiguous prompts are, if several gave them."""
    rows = [
        row | {"prompts": f"{row['condition']}, {row['n_raters']} raters"}
        for row in records(section.raters)
    ]
    if not rows:
        return
    split = (
        "Standard deviation of IoU between the means of raters on the same objects, and within a "
        "rater, in percent; ICC: the share of that variance that is between raters, in percent "
        "too; in brackets the 95 % interval of an analysis of variance, which is lopsided."
    )
    ambiguity = (
        "Mean IoU of pairs of masks of an object, in percent: of different raters (low where the "
        "prompt is ambiguous), and of boxes at the 25th human percentile (low where the segmenter "
        f"is sensitive); {where} the 95 % interval over images."
    )
    for title, statistics, ends, about in (
        ("raters", _SPLIT, interval_text, split),
        ("agreement of masks", _AMBIGUITY, spread, ambiguity),
    ):
        names = {"segmenter": "segmenter", "prompts": "prompts"}
        yield table_of_rows(f"{section.title}; {title}", rows, names, statistics, ends, about)
