"""What a segmenter's own estimate of the IoU of its masks is worth.

Whether it is right on average and in each part of its range (calibration), whether it tells good
masks from bad ones (ranking), and whether it picks the best of several candidates (selection).
Formulas: docs/sources/robustness.md, C.4.5.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, sparse, special

from samrobust.report.columns import Statistic
from samrobust.report.glance import EXACT
from samrobust.report.layout import Spread, Table, records, table_of_rows
from samrobust.report.scores import ObjectScores, iou_of_trials
from samrobust.report.statistics import INTERVAL, Ints, bootstrap_weights
from samrobust.runs.store import Run, read_quality
from samrobust.seeding import keyed_generator
from samrobust.types import Floats

if TYPE_CHECKING:
    from samrobust.report.summary import Section

N_BINS = 15
"""Of equal mass, of the calibration errors (Oksuz et al. 2023, with bins of equal mass)."""
TAUS = (0.5, 0.75)
"""IoU from which a mask counts as right in the calibration error of detections."""
N_PARTS = 5
"""Of equal mass: the mean IoU without the one of lowest quality is that at 80 % coverage."""
N_FOLDS = 5
"""Of the images, on the others of which a recalibration is fitted."""
MAX_BLOCKS = 128
"""Of prompts with similar values, in the intervals alone: estimates are exact."""
_AT_ONCE = 256  # resamples of a rank correlation

CALIBRATION = (
    Statistic("bias", "bias", "%", higher_is_better=False),
    Statistic("growth", "growth", "%", higher_is_better=False),
    Statistic("mae", "MAE", "%", higher_is_better=False),
    Statistic("iou_ece", "IoU-ECE", "%", higher_is_better=False),
    Statistic("recalibrated", "recalibrated", "%", higher_is_better=False),
    Statistic("d_ece_50", "D-ECE .5", "%", higher_is_better=False),
    Statistic("d_ece_75", "D-ECE .75", "%", higher_is_better=False),
)
RANKING = (
    Statistic("spearman", "Spearman", "%", higher_is_better=True),
    Statistic("auroc", "AUROC", "%", higher_is_better=True),
    Statistic("aurc", "AURC", "%", higher_is_better=False),
    Statistic("e_aurc", "E-AURC", "%", higher_is_better=False),
    Statistic("iou_at_80", "IoU at 80 %", "%", higher_is_better=True),
    Statistic("gap", "gap", "%", higher_is_better=False),
    Statistic("best_chosen", "best chosen", "%", higher_is_better=True),
)
NAMES = tuple(statistic.column for statistic in (*CALIBRATION, *RANKING))
_ENDS = ("", "_low", "_high")


@dataclass(frozen=True)
class Estimates:
    """The masks of one condition and what their segmenter says of them, N prompts.

    Attributes:
        quality: (N,) estimated IoU, clipped to [0, 1]: SAM's may be above 1.
        iou: (N,) IoU with the target.
        gap: (N,) IoU lost by the choice among several candidates, NaN where there is one.
        image: (N,) place of the image of each.
    """

    quality: Floats
    iou: Floats
    gap: Floats
    image: Ints


def estimates_of(run: Run, scores: ObjectScores) -> dict[str, Estimates]:
    """Return the estimates of a run by condition; none where its segmenter makes none.

    Args:
        run: the run; it is read again.
        scores: of the run.

    Raises:
        RunError: its qualities cannot be read.
    """
    rows = read_quality(run.folder)
    if not rows["quality"].any():  # 0 is what a segmenter without an estimate gives
        return {}
    objects = scores.objects.reset_index(names="object")
    rows = rows.astype({"sample_id": "str", "instance_id": "str"})
    rows = rows.merge(objects, on=["sample_id", "instance_id"], validate="m:1")
    names = [str(row["name"]) for row in run.manifest.protocol["conditions"]]
    found = {}
    for name, ious in iou_of_trials(run, names).items():
        chosen = rows[(rows["condition"] == name) & (rows["trial"] < ious.shape[1])]
        iou = ious[chosen["object"], chosen["trial"]].astype(np.float64)
        there = ~np.isnan(iou)
        if there.any():
            quality, gap = (chosen[key].to_numpy(np.float64)[there] for key in ("quality", "gap"))
            image = chosen["image"].to_numpy()[there]
            found[name] = Estimates(np.clip(quality, 0, 1), iou[there], gap, image)
    return found


def calibration_of(section: "Section") -> pd.DataFrame:
    """Return `Section.calibration`."""
    names = ["segmenter", "condition", "n_prompts", *(f"{n}{end}" for n in NAMES for end in _ENDS)]
    rows: list[dict[str, Any]] = []
    for label, found in section.estimates.items():
        n_images = section.scores[section.segmenters.index(label)].n_images
        key = section.runs[0].dataset.key
        cells = _with_intervals(found, n_images=n_images, key=key, exact=_exact(section, found))
        for name, cell in cells.items():
            n_prompts = len(found[name].quality)
            rows.append({"segmenter": label, "condition": name, "n_prompts": n_prompts, **cell})
    return pd.DataFrame(rows, columns=names).astype(
        {"n_prompts": "int64"} | dict.fromkeys(names[3:], "float64")
    )


def _exact(section: "Section", found: Mapping[str, Estimates]) -> str:
    """Return the condition of the exact prompt, "" where there is none."""
    exact = [row["name"] for row in section.conditions if row["degradation"] == EXACT]
    return next((str(name) for name in exact if name in found), "")


def _with_intervals(
    found: Mapping[str, Estimates], *, n_images: int, key: str, exact: str
) -> dict[str, dict[str, float]]:
    """Return the statistics of each condition with the ends of their intervals."""
    better = {name: recalibrate(each, _folds(n_images, key=key)) for name, each in found.items()}
    once = np.ones((n_images, 1))
    points = {
        name: _Resampled(each, better[name], n_images, most=len(each.quality)).statistics(once)
        for name, each in found.items()
    }
    sampled = {
        name: _Resampled(each, better[name], n_images, most=MAX_BLOCKS)
        for name, each in found.items()
    }
    draws: dict[str, list[dict[str, Floats]]] = {name: [] for name in found}
    for weights in bootstrap_weights(n_images, key=key):
        for name, each in sampled.items():
            draws[name].append(each.statistics(np.ascontiguousarray(weights.T)))
    joined = {name: _joined(parts) for name, parts in draws.items()}
    cells: dict[str, dict[str, float]] = {}
    for name in found:
        cells[name] = {}
        for statistic in NAMES:
            values, many = points[name], joined[name]
            if statistic == "growth":
                if name == exact or not exact:
                    continue
                values = {"growth": values["bias"] - points[exact]["bias"]}
                many = {"growth": many["bias"] - joined[exact]["bias"]} if many else {}
            cells[name][statistic] = float(values[statistic][0])
            if many and not np.isnan(values[statistic][0]):
                low, high = np.nanquantile(many[statistic], INTERVAL)
                cells[name] |= {f"{statistic}_low": low, f"{statistic}_high": high}
    return cells


def _joined(parts: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts or [{}])[0]}


def _folds(n_images: int, *, key: str) -> Ints:
    """Return (I,) the fold of each image, at random."""
    order: Ints = keyed_generator("calibration", key).permutation(n_images) % N_FOLDS
    return order


def isotonic(quality: Floats, iou: Floats) -> tuple[Floats, Floats]:
    """Return ascending qualities and the IoU that isotonic regression gives each.

    Between them it is linear.

    Args:
        quality: (N,).
        iou: (N,).
    """
    values, place, counts = np.unique(quality, return_inverse=True, return_counts=True)
    means = np.bincount(place, iou) / counts
    return values, optimize.isotonic_regression(means, weights=counts).x


def recalibrate(found: Estimates, folds: Ints) -> Floats:
    """Return (N,) the qualities after isotonic regression on the images of the other folds.

    NaN where there is none.

    Args:
        found: the estimates.
        folds: (I,) the fold of each image.
    """
    of_prompt, better = folds[found.image], np.full(len(found.quality), np.nan)
    for fold in np.unique(of_prompt):
        here = of_prompt == fold
        if not here.all():
            fitted = isotonic(found.quality[~here], found.iou[~here])
            better[here] = np.interp(found.quality[here], *fitted)
    return better


class _Blocks:
    """Sums over prompts of equal value, in ascending order; of similar value where many differ.

    Args:
        key: (N,) the value.
        image: (N,) place of each prompt's image.
        sums: K arrays (N,), summed.
        n_images: I.
        most: blocks.
    """

    def __init__(
        self, key: Floats, image: Ints, sums: Sequence[Any], n_images: int, *, most: int
    ) -> None:
        values, block, counts = np.unique(key, return_inverse=True, return_counts=True)
        if len(values) > most:
            middle = np.cumsum(counts) - counts / 2
            coarse = (middle * most / len(key)).astype(np.int64)
            block = np.unique(coarse[block], return_inverse=True)[1]
        self.of_prompt: npt.NDArray[np.intp] = block
        shape = int(block.max()) + 1, n_images
        matrices = [sparse.csr_matrix((each, (block, image)), shape, np.float64) for each in sums]
        is_small = shape[0] <= MAX_BLOCKS
        self._sums = [matrix.toarray() if is_small else matrix for matrix in matrices]

    def sums(self, weights: Floats) -> list[Floats]:
        """Return K arrays (B, R) of sums where images have (I, R) weights."""
        return [np.asarray(matrix @ weights) for matrix in self._sums]


class _Resampled:
    """The statistics of estimates whose images have weights."""

    def __init__(self, found: Estimates, recalibrated: Floats, n_images: int, *, most: int) -> None:
        quality, iou, image = found.quality, found.iou, found.image
        one = np.ones(len(iou))
        hits = [iou >= tau for tau in TAUS]
        self._by_quality = _Blocks(quality, image, [one, quality, iou, *hits], n_images, most=most)
        self._by_iou = _Blocks(iou, image, [one, iou], n_images, most=most)
        self._by_recalibrated = _Blocks(
            recalibrated, image, [one, recalibrated, iou], n_images, most=most
        )
        n_blocks = int(self._by_iou.of_prompt.max()) + 1
        cell = self._by_quality.of_prompt * n_blocks + self._by_iou.of_prompt
        cells, place = np.unique(cell, return_inverse=True)
        self._cells = np.divmod(cells, n_blocks)
        self._pairs = sparse.csr_matrix((one, (place, image)), (len(cells), n_images))
        means = {"mae": abs(quality - iou), "gap": found.gap, "best_chosen": found.gap == 0}
        if np.isnan(found.gap).any():
            means["best_chosen"] = found.gap
        self._means = {
            name: np.bincount(image, values, minlength=n_images) for name, values in means.items()
        }

    def statistics(self, weights: Floats) -> dict[str, Floats]:
        """Return (R,) of each statistic but the growth, for (I, R) weights."""
        n, quality, iou, *hits = self._by_quality.sums(weights)
        n_by_iou, iou_by_iou = self._by_iou.sums(weights)
        total = n.sum(axis=0)
        aurc = _aurc(n, n - iou)
        return {
            **{name: sums @ weights / total for name, sums in self._means.items()},
            "bias": (quality - iou).sum(axis=0) / total,
            "iou_ece": _binned_error(n, quality - iou),
            "recalibrated": self._recalibrated(weights),
            "d_ece_50": _binned_error(n, quality - hits[0]),
            "d_ece_75": _binned_error(n, quality - hits[1]),
            "spearman": self._spearman(n, n_by_iou, weights),
            "auroc": _auroc(n, hits[0]),
            "aurc": aurc,
            "e_aurc": aurc - _aurc(n_by_iou, n_by_iou - iou_by_iou),
            "iou_at_80": _at_coverage(n, iou),
        }

    def _recalibrated(self, weights: Floats) -> Floats:
        n, quality, iou = self._by_recalibrated.sums(weights)
        return _binned_error(n, quality - iou)

    def _spearman(self, n_by_quality: Floats, n_by_iou: Floats, weights: Floats) -> Floats:
        ranks = [_centred_ranks(n) for n in (n_by_quality, n_by_iou)]
        squares = [
            (n * rank**2).sum(axis=0)
            for n, rank in zip((n_by_quality, n_by_iou), ranks, strict=True)
        ]
        products = np.empty(weights.shape[1])
        for start in range(0, len(products), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            of_cell = [rank[place, some] for rank, place in zip(ranks, self._cells, strict=True)]
            n_pairs: Floats = np.asarray(self._pairs @ weights[:, some])
            products[some] = (n_pairs * of_cell[0] * of_cell[1]).sum(axis=0)
        return _ratio(products, np.sqrt(squares[0] * squares[1]))


def _centred_ranks(n: Floats) -> Floats:
    """Return (B, R) the mean rank of each block of n prompts, less that of all."""
    ranks: Floats = np.cumsum(n, axis=0) - n / 2 - n.sum(axis=0) / 2
    return ranks


def _ratio(numbers: Floats, of: Floats) -> Floats:
    ratios: Floats = np.divide(numbers, of, out=np.full_like(numbers, np.nan), where=of > 0)
    return ratios


def bin_sums(n: Floats, sums: Floats, n_bins: int = N_BINS) -> Floats:
    """Return (bins, R) sums over bins of equal mass; a block at a border counts in part in both.

    Args:
        n: (B, R) prompts of each block.
        sums: (B, R).
        n_bins: number of bins.
    """
    nothing = np.zeros((1, n.shape[1]))
    counted = np.concatenate([nothing, np.cumsum(n, axis=0)])
    summed = np.concatenate([nothing, np.cumsum(sums, axis=0)])
    borders = np.linspace(0, 1, n_bins + 1)
    columns = [
        np.interp(borders * counts[-1], counts, values)
        for counts, values in zip(counted.T, summed.T, strict=True)
    ]
    of_bins: Floats = np.diff(np.stack(columns, axis=1), axis=0)
    return of_bins


def _binned_error(n: Floats, differences: Floats) -> Floats:
    """Return (R,) the mean over bins of the size of the mean difference."""
    errors: Floats = np.abs(bin_sums(n, differences)).sum(axis=0) / n.sum(axis=0)
    return errors


def _auroc(n: Floats, n_right: Floats) -> Floats:
    """Return (R,) the chance that of a right and a wrong mask the right one has more quality."""
    n_wrong = n - n_right
    below = np.cumsum(n_wrong, axis=0) - n_wrong / 2
    n_pairs = n_right.sum(axis=0) * n_wrong.sum(axis=0)
    return _ratio((n_right * below).sum(axis=0), n_pairs)


def _aurc(n: Floats, risks: Floats) -> Floats:
    """Return (R,) the mean over k of the mean risk of the k prompts of highest value.

    Of equal values any may come first: the mean over all orders.

    Args:
        n: (B, R) whole numbers of prompts, the highest value last.
        risks: (B, R) sums of 1 - IoU.
    """
    n, risks = n[::-1], risks[::-1]
    counted, risked = np.cumsum(n, axis=0), np.cumsum(risks, axis=0)
    before = counted - n
    each = np.divide(risks, n, out=np.zeros_like(risks), where=n > 0)
    harmonic = special.digamma(counted + 1) - special.digamma(before + 1)
    areas = (risks + (risked - risks - before * each) * harmonic).sum(axis=0)
    means: Floats = areas / counted[-1]
    return means


def _at_coverage(n: Floats, iou: Floats) -> Floats:
    """Return (R,) the mean IoU of the four fifths of the prompts that have the highest quality."""
    kept = bin_sums(n, iou, N_PARTS)[1:].sum(axis=0)
    means: Floats = kept / (n.sum(axis=0) * (N_PARTS - 1) / N_PARTS)
    return means


def reliability(found: Estimates) -> tuple[Floats, Floats]:
    """Return (15,) mean quality and mean IoU in bins of equal mass, in ascending order."""
    order = np.argsort(found.quality, kind="stable")
    n = np.ones((len(order), 1))
    quality, iou = (
        bin_sums(n, values[order][:, None])[:, 0] * N_BINS / len(order)
        for values in (found.quality, found.iou)
    )
    return quality, iou


def risk_coverage(found: Estimates) -> tuple[Floats, Floats]:
    """Return (N,) coverages and the mean of 1 - IoU of that share of highest quality."""
    order = np.argsort(-found.quality, kind="stable")
    counts = np.arange(1, len(order) + 1)
    return counts / len(order), np.cumsum(1 - found.iou[order]) / counts


_QUALITY = {
    "calibration": CALIBRATION,
    "ranking": RANKING,
}
_QUALITY_TERMS = {
    "bias": "bias: mean of estimate - IoU",
    "growth": "growth: bias less that of the exact prompt",
    "mae": "MAE: mean size of the difference",
    "iou_ece": "IoU-ECE: mean over 15 bins of equal mass of the size of the mean difference",
    "recalibrated": "recalibrated: IoU-ECE after isotonic regression on other images",
    "d_ece_50": "D-ECE: as IoU-ECE, with the share of masks of IoU >= .5 or .75 for the mean IoU",
    "spearman": "Spearman: rank correlation of estimate and IoU",
    "auroc": "AUROC: of the estimate, for IoU >= .5",
    "aurc": "AURC: mean of 1 - mIoU over all shares of the prompts, highest estimate first",
    "e_aurc": "E-AURC: AURC less the lowest that there could be",
    "iou_at_80": "IoU at 80 %: without the fifth of lowest estimate",
    "gap": "gap: IoU of the best candidate less that of the one of highest estimate",
    "best_chosen": "best chosen: prompts in which these are one",
}


def quality_tables(section: "Section", spread: Spread, *, where: str) -> Iterator[Table]:
    """Yield what the segmenters' own estimates of IoU are worth, where they have some."""
    if len(section.calibration):
        for about in _QUALITY:
            yield _quality_table(section, about, spread, where=where)


def _quality_table(section: "Section", about: str, spread: Spread, *, where: str) -> Table:
    """Return what the segmenters' own estimates of IoU are worth: one of the two halves."""
    frame = section.calibration
    frame = frame[frame["condition"].isin(section.shown_conditions)]
    shown_here = [each for each in _QUALITY[about] if frame[each.column].notna().any()]
    columns = [each.column for each in shown_here]
    sentence = "; ".join(_QUALITY_TERMS[name] for name in columns if name in _QUALITY_TERMS)
    note = (
        f"The segmenter's own estimate of each mask's IoU, in percent; {where} the 95 % interval, "
        f"bootstrap over images. {sentence[0].upper()}{sentence[1:]}."
    )
    title = f"{section.title}; {about} of the estimated IoU"
    names = {"segmenter": "segmenter", "condition": "condition"}
    return table_of_rows(title, records(frame), names, shown_here, spread, note)
