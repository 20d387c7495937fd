import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy import stats

from samrobust.report.summary import MEASURED, Section, summarise
from samrobust.runs.store import Run
from samrobust.types import Floats
from tests.runs import CONTROL, PAIR, SAM, STABLE, MadeUp, described, member

NOISY = described("noisy-box", conditions=("exact-box", "box-noise-0.2", "box-noise-0.4"))
RUN = MadeUp(protocol=NOISY)


def row_of(section: Section, segmenter: str, condition: str) -> "pd.Series[Any]":
    rows = section.table
    return rows[(rows["segmenter"] == segmenter) & (rows["condition"] == condition)].iloc[0]


def values_of(run: Run, metric: str, condition: str) -> pd.DataFrame:
    chosen = (run.scores["metric"] == metric) & (run.scores["condition"] == condition)
    return run.scores[chosen].astype({"value": "float64"})


def published(dataset: str, **changes: str | float) -> dict[str, Any]:
    value = {"segmenter": "SAM ViT-L", "dataset": dataset, "condition": "box-noise-0.2"}
    return {**value, "metric": "iou", "value": 0.5, "source": "paper, Table 1", **changes}


def test_means_are_over_objects_of_means_over_trials(tmp_path: Path) -> None:
    run = RUN.store(tmp_path)
    row = row_of(summarise([run])[0], "sam vit_b", "box-noise-0.4")
    for column, metric in {"miou": "iou", "mbiou": "boundary-iou", "msf": "stability"}.items():
        values = values_of(run, metric, "box-noise-0.4")
        expected = values.groupby(["sample_id", "instance_id"])["value"].mean().mean()
        assert row[column] == pytest.approx(expected, abs=1e-12)
    assert (row["n_images"], row["n_objects"], row["n_trials"]) == (6, 12, 4)


def test_spread_is_over_trials_of_an_object_with_n_minus_1(tmp_path: Path) -> None:
    run = RUN.store(tmp_path)
    row = row_of(summarise([run])[0], "sam vit_b", "box-noise-0.4")
    objects = values_of(run, "iou", "box-noise-0.4").groupby(["sample_id", "instance_id"])
    variances = [
        float(((trials - trials.mean()) ** 2).sum() / (len(trials) - 1))
        for trials in (group["value"].to_numpy() for _, group in objects)
    ]
    assert row["iou_var"] == pytest.approx(np.mean(variances), abs=1e-12)
    assert row["iou_std"] == pytest.approx(np.mean(np.sqrt(variances)), abs=1e-12)


def test_one_trial_has_no_spread_and_no_stability(tmp_path: Path) -> None:
    row = row_of(summarise([RUN.store(tmp_path)])[0], "sam vit_b", "exact-box")
    assert row["n_trials"] == 1
    assert np.isfinite(row[["miou", "miou_low", "mbiou"]].astype(float)).all()
    assert row[["msf", "iou_std", "iou_var", "msf_low", "iou_std_high"]].isna().all()


def scipy_interval(sums: Floats, counts: npt.NDArray[np.integer[Any]]) -> tuple[float, float]:
    """Return the 95 % interval of a ratio of sums over images."""
    result: Any = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        n_resamples=20_000,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    low, high = result.confidence_interval
    return low, high


@pytest.mark.parametrize(
    ("column", "metric"), [("miou", "iou"), ("msf", "stability"), ("mbiou", "boundary-iou")]
)
def test_intervals_agree_with_those_of_scipy(tmp_path: Path, column: str, metric: str) -> None:
    run = RUN.but(n_samples=40).store(tmp_path)
    row = row_of(summarise([run])[0], "sam vit_b", "box-noise-0.4")
    values = values_of(run, metric, "box-noise-0.4")
    images = values.groupby(["sample_id", "instance_id"])["value"].mean().groupby("sample_id")
    sums, counts = images.sum().to_numpy(), images.count().to_numpy()
    low, high = scipy_interval(sums, counts)
    assert row[f"{column}_low"] == pytest.approx(low, abs=0.06 * (high - low))
    assert row[f"{column}_high"] == pytest.approx(high, abs=0.06 * (high - low))


def test_segmenters_are_resampled_alike_in_any_order(tmp_path: Path) -> None:
    one = RUN.store(tmp_path)
    # the scores depend on the label only, so another checkpoint has the same
    other = RUN.but(segmenter=dataclasses.replace(SAM, checkpoint_sha256="c" * 64)).store(tmp_path)
    tables = [
        section.table[section.table["segmenter"] == f"sam vit_b ({letter * 8})"]
        .filter(regex="^(miou|mbiou|msf|iou_std|iou_var)")
        .reset_index(drop=True)
        for runs in ([one, other], [other, one])
        for section in summarise(runs)
        for letter in "ac"
    ]
    assert tables[0].shape == (3, 18)
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_one_image_has_no_interval(tmp_path: Path) -> None:
    rows = summarise([RUN.but(n_samples=1).store(tmp_path)])[0].table
    assert rows["miou"].notna().all()
    assert rows[["miou_low", "miou_high", "msf_low"]].isna().all(axis=None)


def test_conditions_keep_their_order_and_controls_stand_first(tmp_path: Path) -> None:
    runs = [RUN.but(segmenter=segmenter).store(tmp_path) for segmenter in (STABLE, SAM, CONTROL)]
    (section,) = summarise(runs)
    labels = ["box-as-mask", "stable-sam vit_b", "sam vit_b"]
    assert list(section.table["segmenter"]) == labels * 3
    assert list(section.table["condition"].unique()) == [row["name"] for row in NOISY["conditions"]]
    assert list(section.table["level"].unique()) == [0.0, 0.2, 0.4]
    assert list(section.table["is_control"][:3]) == [True, False, False]
    assert list(section.table["frame"][:3]) == ["", "longest-side", "longest-side"]


def test_published_values_stand_last_in_their_condition_and_data_set(tmp_path: Path) -> None:
    reported = [
        published("scenes"),
        published("scenes", metric="stability", value=0.25),
        published("scenes", source="another paper"),
        published("elsewhere", segmenter="never shown"),
    ]
    runs = [
        RUN.but(segmenter=segmenter, reported=reported).store(tmp_path)
        for segmenter in (SAM, CONTROL)
    ]
    rows = summarise(runs)[0].table
    block = rows[rows["condition"] == "box-noise-0.2"]
    sources = [MEASURED, MEASURED, "paper, Table 1", "another paper"]
    assert list(block["source"]) == sources
    assert list(block["miou"][2:]) == [0.5, 0.5]
    assert block["msf"].iloc[2] == 0.25
    assert block["msf"].iloc[3:].isna().all()
    assert block["miou_low"][2:].isna().all()
    assert len(rows) == 3 * 2 + 2


def test_a_group_is_the_unweighted_mean_of_its_members(tmp_path: Path) -> None:
    reported = [published("pair")]
    made = [
        RUN.but(segmenter=segmenter, dataset=member(name), n_samples=size, reported=reported)
        for name, size in zip(PAIR, (30, 60), strict=True)
        for segmenter in ((SAM, STABLE) if name == "coift" else (SAM,))
    ]
    *members, mean = summarise([run.store(tmp_path) for run in made])
    assert [section.dataset for section in members] == list(PAIR)
    assert mean.dataset == "pair (mean of 2)"
    measured = mean.table[mean.table["source"] == MEASURED]
    assert set(measured["segmenter"]) == {"sam vit_b"}  # the other one lacks a member
    row = row_of(mean, "sam vit_b", "box-noise-0.4")
    parts = [row_of(section, "sam vit_b", "box-noise-0.4") for section in members]
    assert row["n_images"] == 90
    for name in mean.statistics:
        expected = (parts[0][name] + parts[1][name]) / 2
        assert row[name] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    widths = [part["miou_high"] - part["miou_low"] for part in (*parts, row)]
    independent = np.hypot(widths[0], widths[1]) / 2
    assert widths[2] == pytest.approx(independent, rel=0.1)
    assert list(mean.table["source"]) == [MEASURED, MEASURED, "paper, Table 1", MEASURED]
    assert all(set(section.table["source"]) == {MEASURED} for section in members)


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": 6},
        {"trials": 4},
        {"segmenter": STABLE},
        {"segmenter": dataclasses.replace(SAM, checkpoint_sha256="c" * 64)},
        {"segmenter": dataclasses.replace(SAM, frame="squash")},
        {"protocol": {**NOISY, "selection": "oracle"}},
        {"constants": {"boundary-width": 0.03}},
    ],
)
def test_only_runs_that_are_alike_are_averaged(tmp_path: Path, changes: dict[str, Any]) -> None:
    one = RUN.but(dataset=member("coift")).store(tmp_path)
    other = RUN.but(dataset=member("hrsod"), **changes).store(tmp_path)
    assert [section.dataset for section in summarise([one, other])] == list(PAIR)


def test_other_metrics_have_a_column(tmp_path: Path) -> None:
    protocol = {**NOISY, "metrics": ["hausdorff"]}
    run = RUN.but(protocol=protocol).store(tmp_path)
    (section,) = summarise([run])
    expected = values_of(run, "hausdorff", "box-noise-0.4")["value"].mean()
    row = row_of(section, "sam vit_b", "box-noise-0.4")
    assert section.statistics[-1] == "hausdorff"
    assert row["hausdorff"] == pytest.approx(expected, abs=1e-12)
    assert row["hausdorff_low"] < row["hausdorff"] < row["hausdorff_high"]
    assert section.table[["miou", "mbiou", "msf", "iou_std"]].isna().all(axis=None)


def test_a_condition_without_any_score_is_an_empty_row(tmp_path: Path) -> None:
    protocol = {**NOISY, "metrics": ["stability"]}
    rows = summarise([RUN.but(protocol=protocol).store(tmp_path)])[0].table
    assert rows["condition"].iloc[0] == "exact-box"
    assert list(rows["msf"].isna()) == [True, False, False]


def test_limits_and_trials_are_sections_of_their_own(tmp_path: Path) -> None:
    runs = [RUN.but(**changes).store(tmp_path) for changes in ({}, {"limit": 6}, {"trials": 4})]
    titles = [section.title for section in summarise(runs)]
    usual = "selection single; frame longest-side"
    assert titles == [
        f"noisy-box v1 on scenes/6: {usual}",
        f"noisy-box v1 on scenes/6: first 6 images; {usual}",
        f"noisy-box v1 on scenes/6: 4 trials; {usual}",
    ]


def test_missing_and_failed_images_are_marked(tmp_path: Path) -> None:
    lacking = {"missing": frozenset({"image-1", "image-2"}), "failed": frozenset({"image-3"})}
    runs = [RUN.but(segmenter=segmenter, **lacking).store(tmp_path) for segmenter in (SAM, CONTROL)]
    (section,) = summarise(runs)
    assert section.marks[:2] == ("incomplete: 3 of 6 images", "images that failed: 1")
    assert set(section.table["n_images"]) == {3}


def test_a_failed_image_alone_is_not_called_incomplete(tmp_path: Path) -> None:
    (section,) = summarise([RUN.but(failed=frozenset({"image-3"})).store(tmp_path)])
    assert section.marks[0] == "images that failed: 1"


def test_no_runs_have_no_sections() -> None:
    assert summarise([]) == []


def trials_of(run: Run, condition: str) -> pd.DataFrame:
    """Return the IoU of each object's trials, objects x trials."""
    values = values_of(run, "iou", condition)
    return values.pivot_table("value", ["sample_id", "instance_id"], "trial")


def test_the_tail_and_the_failures_are_over_all_trials(tmp_path: Path) -> None:
    run = RUN.but(accuracy=0.65, n_samples=40).store(tmp_path)
    row = row_of(summarise([run])[0], "sam vit_b", "box-noise-0.4")
    values = np.sort(trials_of(run, "box-noise-0.4").to_numpy().ravel())
    whole, part = divmod(len(values), 10)
    tail = (values[:whole].sum() + part / 10 * values[whole]) / (len(values) / 10)
    assert row["iou_low"] == pytest.approx(tail, abs=1e-12)
    assert row["iou_failed"] == pytest.approx((values < 0.5).mean(), abs=1e-12)
    assert 0 < row["iou_failed_low"] < row["iou_failed"] < row["iou_failed_high"] < 1
    assert row["iou_low_low"] < row["iou_low"] < row["iou_low_high"]


def test_the_variance_splits_as_in_an_analysis_of_variance(tmp_path: Path) -> None:
    run = RUN.but(n_samples=40).store(tmp_path)
    row = row_of(summarise([run])[0], "sam vit_b", "box-noise-0.4")
    trials = trials_of(run, "box-noise-0.4").to_numpy()
    n_objects, n_trials = trials.shape
    statistic, _ = stats.f_oneway(*trials)
    mean_square = n_trials * trials.mean(axis=1).var(ddof=1)
    within = mean_square / statistic
    assert row["iou_var"] == pytest.approx(within, rel=1e-6)
    assert row["iou_var_between"] == pytest.approx((mean_square - within) / n_trials, rel=1e-6)
    assert n_objects == row["n_objects"]


def test_a_fall_by_one_more_point_is_counted_on_the_same_trial(tmp_path: Path) -> None:
    run = MadeUp(protocol=described("points"), accuracy=0.4, n_samples=20).store(tmp_path)
    (section,) = summarise([run])
    assert np.isnan(row_of(section, "sam vit_b", "points-1")["iou_fell"])
    for fewer, more in (("points-1", "points-2"), ("points-4", "points-5")):
        fell = (trials_of(run, fewer) - trials_of(run, more)).to_numpy() > 0.05
        assert 0 < fell.mean() < 1
        assert row_of(section, "sam vit_b", more)["iou_fell"] == pytest.approx(fell.mean())


def test_boxes_are_no_ladder_of_points(tmp_path: Path) -> None:
    assert summarise([RUN.store(tmp_path)])[0].table["iou_fell"].isna().all()


def test_differences_are_paired_over_images(tmp_path: Path) -> None:
    runs = [
        RUN.but(segmenter=segmenter, n_samples=40, accuracy=accuracy).store(tmp_path)
        for segmenter, accuracy in ((SAM, 0.8), (STABLE, 0.84), (CONTROL, 0.4))
    ]
    (section,) = summarise(runs)
    chosen = section.differences
    chosen = chosen[(chosen["statistic"] == "miou") & (chosen["condition"] == "box-noise-0.4")]
    assert len(chosen) == 3
    means = [
        values_of(run, "iou", "box-noise-0.4").groupby(["sample_id", "instance_id"])["value"].mean()
        for run in runs
    ]
    gain = means[0] - means[1]
    row = chosen.iloc[0]
    assert (row["segmenter"], row["other"]) == ("sam vit_b", "stable-sam vit_b")
    assert row["difference"] == pytest.approx(gain.mean(), abs=1e-12)
    images = gain.groupby("sample_id")
    sums, counts = images.sum().to_numpy(), images.count().to_numpy()
    low, high = scipy_interval(sums, counts)
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.06 * (high - low))
    flips: Any = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=20_000, vectorized=False,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert row["p"] == pytest.approx(flips.pvalue, abs=0.015)
    assert list(chosen["is_tie"]) == [bool(row["p_holm"] >= 0.05 or low <= 0 <= high), False, False]
    best = {cell for cell in section.best if cell[0] == "miou" and cell[2] == "box-noise-0.4"}
    assert best == (set() if row["is_tie"] else {("miou", "stable-sam vit_b", "box-noise-0.4")})


def test_less_is_better_for_spreads_and_failures(tmp_path: Path) -> None:
    runs = [
        RUN.but(segmenter=segmenter, n_samples=40, accuracy=accuracy).store(tmp_path)
        for segmenter, accuracy in ((SAM, 0.9), (CONTROL, 0.4))
    ]
    best = summarise(runs)[0].best
    for statistic in ("miou", "iou_std", "iou_failed"):
        assert (statistic, "sam vit_b", "box-noise-0.4") in best
    assert all(segmenter == "sam vit_b" for _, segmenter, _ in best)


def test_classes_of_objects_have_their_own_means(tmp_path: Path) -> None:
    run = RUN.but(n_samples=30).store(tmp_path)
    (section,) = summarise([run])
    objects = run.objects.set_index(["sample_id", "instance_id"])
    values = values_of(run, "iou", "box-noise-0.4")
    means = values.groupby(["sample_id", "instance_id"])["value"].mean()
    areas = objects["area"].reindex(means.index)
    medium = means[(areas >= 32**2) & (areas < 96**2)]
    rows = section.breakdown
    chosen = rows[(rows["class"] == "medium") & (rows["condition"] == "box-noise-0.4")].iloc[0]
    assert chosen["n_objects"] == len(medium)
    assert chosen["miou"] == pytest.approx(medium.mean(), abs=1e-12)
    assert chosen["miou_low"] < chosen["miou"] < chosen["miou_high"]
    assert set(rows["class"]) == {"small", "medium", "large", "compact", "winding", "thin"}


def test_runs_that_do_not_say_what_their_objects_are_take_it_from_others(tmp_path: Path) -> None:
    old = RUN.but(has_objects=False).store(tmp_path)
    new = RUN.but(segmenter=STABLE).store(tmp_path)
    (alone,) = summarise([old])
    assert alone.breakdown.empty
    (both,) = summarise([old, new])
    assert set(both.breakdown["segmenter"]) == {"sam vit_b", "stable-sam vit_b"}
