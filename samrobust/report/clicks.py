"""How much the clicks of likely and of unlikely users differ in what they need."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from samrobust.degradations.clicks import N_GROUPS
from samrobust.report.columns import OF_CLICKS, Statistic
from samrobust.report.layout import Spread, Table, records, table_of_rows
from samrobust.report.scores import ObjectScores, conversations
from samrobust.report.statistics import INTERVAL, bootstrap_weights
from samrobust.runs.store import Run
from samrobust.types import Floats

if TYPE_CHECKING:
    from samrobust.report.summary import Section

NOC = "noc_90"
"""What groups are compared by (RClicks, docs/sources/peers.md 1.2)."""
COLUMNS = (NOC, "dgr", "nsr")
_ENDS = ("", "_low", "_high")


def click_group_table(
    conditions: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    stored: Sequence[Run],
    scores: Sequence[ObjectScores],
) -> pd.DataFrame:
    """Return `Section.click_groups`."""
    last = {
        talk.interaction["group"]: talk.places[-1]
        for talk in conversations(conditions)
        if talk.interaction["policy"] == "groups" and not conditions[talk.places[0]].get("image")
    }
    names = ["segmenter", *(f"{column}{end}" for column in COLUMNS for end in _ENDS)]
    rows: list[dict[str, Any]] = []
    if set(last) == {*range(1, N_GROUPS + 1)}:
        places = [last[group] for group in sorted(last)]
        for label, run, its_scores in zip(labels, stored, scores, strict=False):
            if NOC in its_scores.statistics:
                values = its_scores.statistics[NOC][places]  # groups x objects
                key = run.manifest.dataset.key
                rows.append({"segmenter": label, **_row(values, its_scores, key)})
    return pd.DataFrame(rows, columns=names)


def _row(values: Floats, scores: ObjectScores, key: str) -> dict[str, float]:
    columns = [values.mean(axis=0), values[0], values[-1], values.std(axis=0, ddof=1)]
    owners, n_images = scores.objects["image"].to_numpy(), scores.n_images
    counts = np.bincount(owners, minlength=n_images)
    sums = np.stack([np.bincount(owners, each, minlength=n_images) for each in columns], axis=1)
    row = dict(zip(COLUMNS, _figures(sums.sum(axis=0)[None] / counts.sum())[0], strict=True))
    weights = [*bootstrap_weights(n_images, key=key)]
    ends = np.full((2, len(COLUMNS)), np.nan)
    if weights:
        means = np.concatenate([(each @ sums) / (each @ counts)[:, None] for each in weights])
        ends = np.quantile(_figures(means), INTERVAL, axis=0)
    for end, of_end in zip(_ENDS[1:], ends, strict=True):
        row |= {f"{column}{end}": value for column, value in zip(COLUMNS, of_end, strict=True)}
    return row


def _figures(means: Floats) -> Floats:
    """Return (R, 3) NoC, dGR and NSR of (R, 4) means: of groups, group 1, group 10 and spread."""
    noc, first, last, spread = means.T
    return np.stack([noc, (first - last) / last, spread / noc], axis=1)


_GROUPS = (
    OF_CLICKS[NOC],
    Statistic("dgr", "dGR", "%", higher_is_better=False),
    Statistic("nsr", "NSR", "%", higher_is_better=False),
)


def group_tables(section: "Section", spread: Spread, *, where: str) -> Iterator[Table]:
    """Yield how much likely and unlikely clicks differ, where a conversation has both."""
    rows = records(section.click_groups)
    if rows:
        about = (
            f"NoC@90: mean over ten groups of clicks, from unlikely to likely; dGR: group 1 less "
            f"group 10, in percent of group 10; NSR: standard deviation over the groups, mean over "
            f"objects, in percent of the NoC; {where} the 95 % interval over images."
        )
        title = f"{section.title}; groups of clicks"
        yield table_of_rows(title, rows, {"segmenter": "segmenter"}, _GROUPS, spread, about)
