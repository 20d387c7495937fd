"""The distribution of people's boxes: fitted to those of a file, and written as a protocol."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats

from samrobust.degradations.human import MOST, SCALE, SHAPE
from samrobust.errors import PromptError
from samrobust.report.statistics import INTERVAL, bootstrap_weights
from samrobust.runs.manifest import RaterRow
from samrobust.types import Floats

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
"""That are printed of the losses."""
LADDER = (25, 50, 75, 90, 95)
"""Percentiles of the protocol, as of `human-box`."""
LEAST_BOXES = 20
_NEWTON_STEPS = 8


@dataclass(frozen=True)
class PeopleFit:
    """A Gamma distribution of complete-IoU losses, and how well it fits.

    Attributes:
        shape: by maximum likelihood.
        scale: likewise.
        shape_interval: 95 %, by bootstrap over images; NaN where there is one.
        scale_interval: likewise.
        ks: Kolmogorov-Smirnov distance of the fit to the losses.
        losses: (N,), sorted; boxes that are the tight one itself do not count.
        n_images: with boxes.
        n_tight: boxes that are the tight one itself.
    """

    shape: float
    scale: float
    shape_interval: tuple[float, float]
    scale_interval: tuple[float, float]
    ks: float
    losses: Floats
    n_images: int
    n_tight: int

    @property
    def n_boxes(self) -> int:
        """Return N."""
        return len(self.losses)


def fit_people(rows: Sequence[RaterRow]) -> PeopleFit:
    """Return the distribution of people's losses.

    A Gamma distribution has no density at 0, so boxes without a loss are counted and left out.

    Raises:
        PromptError: there are too few boxes to fit anything.
    """
    table = pd.DataFrame({"image": [row.sample_id for row in rows], "loss": [r.loss for r in rows]})
    table = table.dropna()
    n_tight = int((table["loss"] <= 0).sum())
    table = table[table["loss"] > 0]
    if len(table) < LEAST_BOXES or table["loss"].nunique() < 2:
        raise PromptError(f"at least {LEAST_BOXES} different boxes are needed, got {len(table)}")
    losses = np.sort(table["loss"].to_numpy(np.float64))
    shape, _, scale = stats.gamma.fit(losses, floc=0)
    found = stats.kstest(losses, stats.gamma(shape, scale=scale).cdf)
    by_image = table.assign(log=np.log(table["loss"]), n=1.0).groupby("image").sum()
    sums = by_image[["n", "loss", "log"]].to_numpy(np.float64)
    resampled = [weights @ sums for weights in bootstrap_weights(len(sums), key="people")]
    shapes, scales = _from_sums(np.concatenate(resampled)) if resampled else _NO_INTERVAL
    return PeopleFit(
        float(shape),
        float(scale),
        _interval(shapes),
        _interval(scales),
        float(found.statistic),
        losses,
        len(sums),
        n_tight,
    )


_NO_INTERVAL = np.full(1, np.nan), np.full(1, np.nan)


def _from_sums(sums: Floats) -> tuple[Floats, Floats]:
    """Return the shapes and scales that are most likely, given (R, 3) n and sums of x and log x.

    Newton's steps on 1 / shape (Minka 2002, "Estimating a Gamma distribution").
    """
    mean, mean_log = sums[:, 1] / sums[:, 0], sums[:, 2] / sums[:, 0]
    gap = np.log(mean) - mean_log
    shape: Floats = (3 - gap + np.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
    for _ in range(_NEWTON_STEPS):
        slope = shape**2 * (1 / shape - special.polygamma(1, shape))
        shape = 1 / (1 / shape + (np.log(shape) - special.digamma(shape) - gap) / slope)
    return shape, mean / shape


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, INTERVAL)
    return float(low), float(high)


def quantile_rows(fit: PeopleFit) -> list[list[str]]:
    """Return percentiles of the losses, of their fit and of BREPS' people, as texts."""
    gammas = stats.gamma(fit.shape, scale=fit.scale), stats.gamma(SHAPE, scale=SCALE)
    return [
        [
            str(percentile),
            f"{np.quantile(fit.losses, percentile / 100):.3f}",
            *(f"{gamma.ppf(percentile / 100):.3f}" for gamma in gammas),
        ]
        for percentile in PERCENTILES
    ]


def protocol_text(fit: PeopleFit, *, name: str, source: str) -> str:
    """Return a protocol file: `human-box` with these people's distribution.

    Args:
        fit: of them.
        name: of the protocol.
        source: file of their boxes.

    Raises:
        PromptError: the loss of the 99th percentile is above 1, where boxes need not touch.
    """
    if stats.gamma(fit.shape, scale=fit.scale).ppf(MOST / 100) > 1:
        raise PromptError(
            f"{source}: one box in a hundred has a loss above 1; are they of objects?"
        )
    gamma = f"shape = {fit.shape:.6g}\nscale = {fit.scale:.6g}"
    people = f"{fit.n_boxes} boxes of {fit.n_images} images in {source}"
    blocks = [
        f"""name = "{name}"
version = 1
summary = "boxes as the people of {_plain(source)} draw them"
source = "fitted to {_plain(people)}"
seed = 0
trials = 20
selection = "single"
metrics = ["iou", "boundary-iou", "stability"]
""",
        '[[conditions]]\nname = "exact-box"\ndegradation = "exact-box"\nlevel = 0\n',
        *(
            f'[[conditions]]\nname = "human-box-p{percentile}"\ndegradation = "human-box"\n'
            f"level = {percentile}\npercentile = {percentile}\n{gamma}\n"
            for percentile in LADDER
        ),
        f'[[conditions]]\nname = "human-box"\ndegradation = "human-box"\n{gamma}\n',
    ]
    return "\n".join(blocks)


def _plain(text: str) -> str:
    """Return a text that a basic string of TOML can hold."""
    return "".join(
        letter if letter.isprintable() and letter not in '"\\' else "?" for letter in text
    )
