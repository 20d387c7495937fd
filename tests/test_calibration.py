"""The worth of estimates of IoU, against scikit-learn and plain loops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import mean_absolute_error, roc_auc_score

from samrobust import evaluate, summarise
from samrobust.datasets.scenes import build_scenes
from samrobust.protocol import load_protocol, with_conditions, with_trials
from samrobust.report.calibration import (
    MAX_BLOCKS,
    N_BINS,
    NAMES,
    Estimates,
    _Resampled,
    calibration_of,
    isotonic,
    recalibrate,
    reliability,
    risk_coverage,
)
from samrobust.report.summary import Section
from samrobust.runs.manifest import QualityRow
from samrobust.runs.store import RunWriter, read_quality, read_run
from samrobust.types import DatasetOptions, Floats
from tests.conftest import GrownBox
from tests.runs import MadeUp, described

N_IMAGES = 7


def _made_up(n: int, *, ties: bool = False, seed: int = 0) -> Estimates:
    rng = np.random.default_rng(seed)
    iou = rng.beta(3, 2, n)
    quality = special.expit(3 * iou - 1 + rng.normal(0, 0.5, n))
    if ties:
        quality, iou = quality.round(1), iou.round(1)
    return Estimates(quality, iou, rng.choice([0, 0.1], n), rng.integers(0, N_IMAGES, n))


def _statistics(found: Estimates) -> dict[str, float]:
    resampled = _Resampled(found, found.quality, N_IMAGES, most=len(found.quality))
    return {
        name: values[0] for name, values in resampled.statistics(np.ones((N_IMAGES, 1))).items()
    }


def _mean_over_orders(quality: Floats, iou: Floats, n_orders: int = 4000) -> float:
    """Return the area under risk against coverage, equal qualities in random order."""
    rng = np.random.default_rng(1)
    areas = []
    for _ in range(n_orders):
        order = np.lexsort((rng.random(len(iou)), -quality))
        areas.append(np.mean(np.cumsum(1 - iou[order]) / np.arange(1, len(iou) + 1)))
    return float(np.mean(areas))


def test_without_ties_they_are_those_of_scikit_learn_and_scipy() -> None:
    found = _made_up(30 * N_BINS)
    ours = _statistics(found)
    quality, iou = found.quality, found.iou
    assert ours["mae"] == pytest.approx(mean_absolute_error(iou, quality))
    assert ours["bias"] == pytest.approx(quality.mean() - iou.mean())
    assert ours["spearman"] == pytest.approx(stats.spearmanr(quality, iou).statistic)
    assert ours["auroc"] == pytest.approx(roc_auc_score(iou >= 0.5, quality))
    for tau, name in ((0.5, "d_ece_50"), (0.75, "d_ece_75")):
        right, mean = calibration_curve(iou >= tau, quality, n_bins=N_BINS, strategy="quantile")
        assert ours[name] == pytest.approx(abs(right - mean).mean(), abs=1e-6)
    bins = np.argsort(quality).reshape(N_BINS, -1)
    errors = [abs(iou[places].mean() - quality[places].mean()) for places in bins]
    assert ours["iou_ece"] == pytest.approx(np.mean(errors))
    assert ours["aurc"] == pytest.approx(_mean_over_orders(quality, iou, 1))
    best = _mean_over_orders(iou, iou, 1)
    assert ours["e_aurc"] == pytest.approx(ours["aurc"] - best)
    assert ours["iou_at_80"] == pytest.approx(iou[np.argsort(quality)[90:]].mean())
    assert ours["gap"] == pytest.approx(found.gap.mean())
    assert ours["best_chosen"] == pytest.approx((found.gap == 0).mean())


def test_ties_count_by_half_and_in_any_order() -> None:
    found = _made_up(83, ties=True)
    ours = _statistics(found)
    assert ours["spearman"] == pytest.approx(stats.spearmanr(found.quality, found.iou).statistic)
    assert ours["auroc"] == pytest.approx(roc_auc_score(found.iou >= 0.5, found.quality))
    assert ours["aurc"] == pytest.approx(_mean_over_orders(found.quality, found.iou), abs=1e-3)


@pytest.mark.parametrize("n", [1, 2, 14])
def test_of_few_prompts_all_is_finite_that_can_be(n: int) -> None:
    found = _made_up(n)
    ours = _statistics(replace(found, iou=np.full(n, 0.9)))
    undefined = {name for name, value in ours.items() if np.isnan(value)}
    assert undefined == {"auroc", "spearman"}  # no wrong mask, and no two IoUs
    assert ours["iou_ece"] == pytest.approx(ours["mae"]) or n > 1
    assert ours["aurc"] == pytest.approx(0.1)
    assert ours["e_aurc"] == pytest.approx(0)


@pytest.mark.parametrize("ties", [False, True])
def test_images_with_weights_are_images_that_stand_there_so_often(ties: bool) -> None:
    found = _made_up(100, ties=ties)
    times = np.array([0, 2, 1, 0, 3, 1, 1])
    places = np.concatenate(
        [np.flatnonzero(found.image == i) for i in range(7) for _ in range(times[i])]
    )
    many = Estimates(*(values[places] for values in vars(found).values()))
    resampled = _Resampled(found, found.quality, N_IMAGES, most=100)
    ours = resampled.statistics(times[:, None].astype(np.float64))
    for name, value in _statistics(many).items():
        assert ours[name][0] == pytest.approx(value), name


def test_blocks_change_statistics_of_many_prompts_by_little() -> None:
    found = _made_up(5000)
    blocks = _Resampled(found, found.quality, N_IMAGES, most=MAX_BLOCKS)
    for name, values in blocks.statistics(np.ones((N_IMAGES, 1))).items():
        assert values[0] == pytest.approx(_statistics(found)[name], abs=2e-3), name


def test_a_recalibration_is_isotonic_regression_on_the_other_folds() -> None:
    found, folds = _made_up(200, ties=True), np.arange(N_IMAGES) % 3
    ours = recalibrate(found, folds)
    for fold in range(3):
        here = folds[found.image] == fold
        theirs = IsotonicRegression(out_of_bounds="clip")
        theirs.fit(found.quality[~here], found.iou[~here])
        np.testing.assert_allclose(ours[here], theirs.predict(found.quality[here]), atol=1e-7)
    assert np.isnan(recalibrate(found, np.zeros(N_IMAGES, np.int64))).all()


def test_isotonic_regression_does_not_fall() -> None:
    values, fitted = isotonic(np.array([0.3, 0.1, 0.2, 0.3]), np.array([0.2, 0.5, 0.1, 0.9]))
    np.testing.assert_allclose(values, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(fitted, [0.3, 0.3, 0.55])


def test_curves_are_bins_and_running_means() -> None:
    found = _made_up(4 * N_BINS + 1)
    quality, iou = reliability(found)
    assert len(quality) == N_BINS
    assert (np.diff(quality) > 0).all()
    assert iou.mean() == pytest.approx(found.iou.mean())
    coverage, risk = risk_coverage(found)
    assert risk.mean() == pytest.approx(_statistics(found)["aurc"])
    assert (coverage[-1], risk[-1]) == (1, pytest.approx(1 - found.iou.mean()))


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Section:
    """Return what three candidates of `GrownBox` and a control got on drawn scenes."""
    protocol = with_trials(load_protocol("noisy-box"), 3)
    protocol = with_conditions(protocol, ["exact-box", "box-noise-0.2", "box-noise-0.4"])
    runs = evaluate(
        [GrownBox(), "ellipse"],
        build_scenes(DatasetOptions(split="4x96x64")),
        replace(protocol, selection="best-quality"),
        results=tmp_path_factory.mktemp("results"),
    )
    return summarise(runs)[0]


def test_a_section_tells_what_estimates_are_worth(section: Section) -> None:
    table = section.calibration
    assert list(section.estimates) == ["grown-box"]  # the other makes none
    assert list(table["condition"]) == ["exact-box", "box-noise-0.2", "box-noise-0.4"]
    # it believes in the largest box by 4, clipped to 1
    miou = section.table.set_index(["segmenter", "condition"])["miou"].loc["grown-box"]
    np.testing.assert_allclose(table["bias"], 1 - miou[table["condition"]], rtol=1e-6)
    assert table["growth"].isna().tolist() == [True, False, False]
    np.testing.assert_allclose(table["growth"][1:], table["bias"][1:] - table["bias"][0])
    assert (table["gap"] > 0).all()
    assert (table["auroc"].dropna() == 0.5).all()
    for name in ("bias", "mae", "iou_ece", "aurc", "gap"):
        assert (table[f"{name}_low"] <= table[name] + 1e-9).all()
        assert (table[f"{name}_high"] >= table[name] - 1e-9).all()


def test_figures_of_estimates_are_drawn(section: Section) -> None:
    figures = section.figures()
    assert {"reliability", "risk"} <= figures.keys()
    (axes,) = figures["risk"].axes
    assert [len(line.get_xdata()) for line in axes.lines] == [  # type: ignore[arg-type]
        len(each.iou) for each in section.estimates["grown-box"].values()
    ]


def test_runs_without_qualities_have_no_calibration(tmp_path: Path) -> None:
    (section,) = summarise([MadeUp(protocol=described("noisy-box")).store(tmp_path)])
    assert section.calibration.empty
    assert list(section.calibration) == [
        "segmenter",
        "condition",
        "n_prompts",
        *(f"{name}{end}" for name in NAMES for end in ("", "_low", "_high")),
    ]
    assert not {"reliability", "risk"} & section.figures().keys()


def test_qualities_are_stored_once(tmp_path: Path) -> None:
    manifest = MadeUp()._manifest()
    rows = [QualityRow("a", "1", "exact-box", 0, 0.5), QualityRow("a", "1", "c", 1, 0.25, 0.125)]
    for _ in range(2):  # a kill between the tables stores the first one twice
        with RunWriter(tmp_path, manifest) as writer:
            writer.write("a", [], qualities=rows)
    stored = read_quality(writer.folder)
    assert len(stored) == 2
    assert stored["quality"].tolist() == [0.5, 0.25]
    assert pd.isna(stored["gap"][0])
    assert stored["gap"][1] == 0.125
    assert read_run(writer.folder).is_empty


def test_the_table_of_a_section_is_that_of_its_function(section: Section) -> None:
    pd.testing.assert_frame_equal(calibration_of(section), section.calibration)
