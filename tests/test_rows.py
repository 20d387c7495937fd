"""Stored rows find their places in arrays, however many are looked at together."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import samrobust.report.scores
from samrobust.errors import RunError
from samrobust.report.formats import differences_csv, to_csv
from samrobust.report.scores import comparable_groups, score_arrays
from samrobust.report.summary import summarise
from tests.runs import SAM, STABLE, MadeUp, described

NOISY = described("noisy-box", conditions=("exact-box", "box-noise-0.2"))
RUN = MadeUp(protocol=NOISY, n_samples=11)


def test_every_stored_value_stands_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samrobust.report.scores, "ROWS_AT_ONCE", 7)
    runs = [RUN.but(segmenter=segmenter).store(tmp_path) for segmenter in (SAM, STABLE)]
    (group,) = comparable_groups(runs)
    arrays = score_arrays(group)
    keys = zip(arrays.objects["sample_id"], arrays.objects["instance_id"], strict=True)
    place = {key: number for number, key in enumerate(keys)}
    n_values = 0
    for s, run in enumerate(runs):
        stored = pd.read_parquet(run.folder / "scores")
        for row in stored.to_dict("records"):
            where = (
                s,
                arrays.conditions.index(row["condition"]),
                place[row["sample_id"], row["instance_id"]],
                max(row["trial"], 0),
            )
            assert arrays.scores[row["metric"]][where] == np.float32(row["value"])
        n_values += len(stored)
    assert sum((~np.isnan(each)).sum() for each in arrays.scores.values()) == n_values


def test_rows_at_once_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [RUN.but(segmenter=segmenter).store(tmp_path) for segmenter in (SAM, STABLE)]

    def tables() -> str:
        sections = summarise(runs)
        return to_csv(sections) + differences_csv(sections)

    together = tables()
    monkeypatch.setattr(samrobust.report.scores, "ROWS_AT_ONCE", 7)
    assert tables() == together


def test_prompts_that_differ_are_found_in_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samrobust.report.scores, "ROWS_AT_ONCE", 7)
    one = RUN.store(tmp_path)
    other = RUN.but(segmenter=STABLE).store(tmp_path)
    changed = other.scores["prompt_hash"].to_numpy().copy()
    last = len(changed) - 1
    assert other.scores["trial"].iloc[last] == -1  # of all trials: one row has this hash
    changed[last] += np.uint64(1)
    other.scores["prompt_hash"] = changed
    with pytest.raises(RunError, match=r"the prompts differ, in 1 of \d+ rows"):
        comparable_groups([one, other])
