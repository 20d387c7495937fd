"""Scores are reduced to one row per object, however they are spread over parts."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import samrobust.runs.store
from samrobust.errors import RunError
from samrobust.metrics.overlap import iou
from samrobust.report.formats import differences_csv, to_csv
from samrobust.report.scores import comparable_groups, iou_of_trials, object_scores
from samrobust.report.summary import summarise
from samrobust.runs.store import Run, read_run
from samrobust.types import Metric
from tests.runs import SAM, STABLE, MadeUp, described

NOISY = described("noisy-box", conditions=("exact-box", "box-noise-0.2"))
RUN = MadeUp(protocol=NOISY, n_samples=11)
KEY = ["sample_id", "instance_id"]


def spread(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Store every image of a run in a part of its own, the last one first."""
    monkeypatch.setattr(samrobust.runs.store, "_BYTES_AT_ONCE", 1)
    (part,) = (run.folder / "scores").iterdir()
    rows = pq.read_table(part).to_pandas()
    part.unlink()
    images = sorted(rows["sample_id"].unique(), reverse=True)
    for number, image in enumerate(images):
        chosen = rows[rows["sample_id"] == image]
        table = pa.Table.from_pandas(chosen, samrobust.runs.store.SCHEMA, preserve_index=False)
        pq.write_table(table, part.with_name(f"part-{number:05d}.parquet"))


def test_every_object_has_the_mean_of_its_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RUN.store(tmp_path)
    spread(run, monkeypatch)
    found = object_scores(run)
    stored = pd.read_parquet(run.folder / "scores").astype({"value": "float64"})
    for column, metric in {"miou": "iou", "mbiou": "boundary-iou", "msf": "stability"}.items():
        for place, condition in enumerate(("exact-box", "box-noise-0.2")):
            rows = stored[(stored["metric"] == metric) & (stored["condition"] == condition)]
            values = found.statistics[column][place]
            if rows.empty:
                assert np.isnan(values).all()
                continue
            means = rows.groupby(KEY)["value"].mean()  # sorted as the objects are
            assert list(means.index) == list(found.objects[KEY].itertuples(index=False))
            np.testing.assert_allclose(values, means, rtol=0, atol=1e-15)
    assert found.n_images == 11
    assert found.n_trials.tolist() == [1, 4]


def test_the_iou_of_each_trial_stands_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RUN.store(tmp_path)
    spread(run, monkeypatch)
    stored = pd.read_parquet(run.folder / "scores")
    found = iou_of_trials(run, ["box-noise-0.2", "exact-box"])
    for condition, trials in found.items():
        rows = stored[(stored["metric"] == "iou") & (stored["condition"] == condition)]
        expected = rows.pivot_table("value", KEY, "trial").to_numpy()
        np.testing.assert_array_equal(trials, expected.astype(np.float32))
    assert list(found) == ["box-noise-0.2", "exact-box"]


def test_parts_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [RUN.but(segmenter=segmenter).store(tmp_path) for segmenter in (SAM, STABLE)]

    def tables() -> str:
        sections = summarise(runs)
        return to_csv(sections) + differences_csv(sections)

    together = tables()
    spread(runs[0], monkeypatch)
    assert tables() == together


def test_one_prompt_that_differs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = RUN.store(tmp_path)
    other = RUN.but(segmenter=STABLE).store(tmp_path)
    (part,) = (other.folder / "scores").iterdir()
    rows = pq.read_table(part).to_pandas()
    last = rows.index[-1]
    assert rows["trial"][last] == -1  # of all trials: one row has this hash
    rows.loc[last, "prompt_hash"] = "0" * 16
    pq.write_table(pa.Table.from_pandas(rows, samrobust.runs.store.SCHEMA), part)
    spread(other, monkeypatch)
    for pair in ([one, other], [other, one]):
        with pytest.raises(RunError, match=r"the prompts differ, in 1 of \d+ rows"):
            comparable_groups(pair)


def test_prompts_of_exchanged_trials_differ(tmp_path: Path) -> None:
    one = RUN.store(tmp_path)
    other = RUN.but(segmenter=STABLE).store(tmp_path)
    (part,) = (other.folder / "scores").iterdir()
    rows = pq.read_table(part).to_pandas()
    chosen = rows["condition"].eq("box-noise-0.2") & rows["trial"].isin([0, 1])
    rows.loc[chosen, "trial"] = 1 - rows.loc[chosen, "trial"]
    pq.write_table(pa.Table.from_pandas(rows, samrobust.runs.store.SCHEMA), part)
    with pytest.raises(RunError, match=r"the prompts differ, in \d+ of \d+ rows"):
        comparable_groups([one, other])


OF = "iou of image 'image-0', object '0', condition box-noise-0.2,"
"""The fourth score of a run; the first two are of the exact box."""
EXACT = "iou of image 'image-0', object '0', condition exact-box, trial 0"


def changed(run: Run, how: str) -> None:
    (part,) = (run.folder / "scores").iterdir()
    rows = pq.read_table(part)
    if how == "twice":
        pq.write_table(pa.concat_tables([rows, rows.slice(3, 1)]), part)
    elif how == "two parts":
        pq.write_table(rows, part.with_name("part-00001.parquet"))
    elif how in {"range", "finite"}:
        values = rows["value"].to_numpy().copy()
        values[4] = 50 if how == "range" else np.nan
        place = rows.schema.get_field_index("value")
        pq.write_table(rows.set_column(place, "value", pa.array(values)), part)
    elif how == "trial":
        place = rows.schema.get_field_index("trial")
        trials = pa.array(np.full(rows.num_rows, 3, np.int32))
        pq.write_table(rows.set_column(place, "trial", trials), part)
    else:
        place = rows.schema.get_field_index("prompt_hash")
        hashes = pa.array(["x" * 100] * rows.num_rows)
        pq.write_table(rows.set_column(place, "prompt_hash", hashes), part)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("twice", f"a score is there twice, as 0.\\d+ and 0.\\d+: {OF} trial 1"),
        ("two parts", f"a score is there twice, as 0.\\d+ and 0.\\d+: {EXACT}"),
        ("range", rf"a value must be in \[0, 1\], got 50: {OF} trial 2"),
        ("finite", f"a value is not finite: {OF} trial 2"),
        ("trial", "trial 3 is not of its protocol"),
        ("hash", "the hash of a prompt has 100 bytes"),
    ],
)
def test_unsound_scores_are_refused(tmp_path: Path, how: str, message: str) -> None:
    run = RUN.store(tmp_path)
    changed(run, how)
    with pytest.raises(RunError, match=f"is not a valid run: {message}"):
        summarise([run])


def test_an_object_in_two_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samrobust.runs.store, "_BYTES_AT_ONCE", 1)
    run = RUN.store(tmp_path)
    changed(run, "two parts")
    with pytest.raises(RunError, match="object '0' of image 'image-0' has scores in two files"):
        summarise([run])


def test_too_few_scores_for_so_many_trials_are_refused(tmp_path: Path) -> None:
    protocol = {**NOISY, "conditions": [{**row, "trials": 10**8} for row in NOISY["conditions"]]}
    run = RUN.store(tmp_path)
    manifest = dataclasses.replace(run.manifest, protocol=protocol)
    with pytest.raises(RunError, match="scores are too few for so many objects and trials"):
        summarise([dataclasses.replace(run, manifest=manifest)])


def test_a_metric_without_bounds_may_have_any_value(tmp_path: Path) -> None:
    protocol = {**NOISY, "metrics": ["iou", "hausdorff"]}  # 9 times the IoU, and not installed
    run = RUN.but(protocol=protocol).store(tmp_path)
    assert run.scores["value"].max() > 1
    assert summarise([run])[0].table["hausdorff"].max() > 1
    changed(run, "range")
    with pytest.raises(RunError, match=r"a value must be in \[0, 1\], got 50: iou of image"):
        read_run(run.folder).scores  # noqa: B018
    assert Metric("dice", iou, unit="%").bounds == (0, 1)
    assert Metric("skill", iou, unit="%", low=-1).bounds == (-1, 1)
    assert Metric("hausdorff", iou, low=0).bounds == (0, np.inf)
