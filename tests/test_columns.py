"""A metric brings its label, unit and direction into tables and figures."""

from pathlib import Path

import pytest

from samrobust.metrics import METRICS
from samrobust.metrics.overlap import iou
from samrobust.registry import Registry
from samrobust.report.columns import column_of, statistic_of
from samrobust.report.plots import COLUMN_INCHES
from samrobust.report.summary import summarise
from samrobust.report.tables import terminal_tables
from samrobust.types import Metric
from tests.runs import SAM, STABLE, MadeUp, described

PROTOCOL = {**described("noisy-box"), "metrics": ["hausdorff"]}


@pytest.fixture
def hausdorff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a plug-in's metric for the length of a test."""
    metric = Metric("hausdorff", iou, label="HD", higher_is_better=False)
    names, load = METRICS.names(), METRICS.load
    monkeypatch.setattr(Registry, "names", lambda _: [*names, "hausdorff"])
    monkeypatch.setattr(
        Registry, "load", lambda _, name: metric if name == "hausdorff" else load(name)
    )
    statistic_of.cache_clear()


@pytest.fixture(autouse=True)
def _forget() -> None:
    statistic_of.cache_clear()


def test_built_in_metrics_keep_their_columns_and_labels() -> None:
    labels = {"iou": ("miou", "mIoU"), "boundary-iou": ("mbiou", "mBIoU")}
    for metric, (column, label) in {**labels, "stability": ("msf", "mSF")}.items():
        statistic = statistic_of(column_of(metric))
        assert (statistic.column, statistic.label, statistic.unit) == (column, label, "%")
        assert statistic.text(0.1234, sign="+") == "+12.3"


def test_a_metric_that_is_not_installed_has_its_name() -> None:
    statistic = statistic_of(column_of("unheard-of"))
    assert (statistic.label, statistic.unit, statistic.factor) == ("unheard-of", "", 1)
    assert statistic.higher_is_better
    assert statistic.text(1234.5678) == "1235"


def test_a_metric_of_three_fields_is_one() -> None:
    metric = Metric("hausdorff", iou, over_trials=False)
    assert (metric.label, metric.unit, metric.higher_is_better) == ("", "", True)


@pytest.mark.usefixtures("hausdorff")
def test_lower_may_be_better(tmp_path: Path) -> None:
    runs = [
        MadeUp(protocol=PROTOCOL, segmenter=segmenter, n_samples=40, accuracy=accuracy).store(
            tmp_path
        )
        for segmenter, accuracy in ((SAM, 0.9), (STABLE, 0.4))
    ]
    (section,) = summarise(runs)
    assert "hausdorff" in section.table
    assert terminal_tables([section])[0].header == ("segmenter", "condition", "HD")
    assert ("hausdorff", "stable-sam vit_b", "box-noise-0.4") in section.best
    axes = section.figures()["level"].axes[0]
    assert axes.get_ylabel() == "HD"


def test_a_section_has_figures_and_a_table_of_objects(tmp_path: Path) -> None:
    run = MadeUp(protocol=described("noisy-box")).store(tmp_path)
    (section,) = summarise([run])
    figures = section.figures()
    assert list(figures) == ["level", "stability", "objects", "variance", "heat"]
    assert figures["objects"].get_figwidth() == COLUMN_INCHES
    table = section.object_table
    assert len(table) == 12 * len(section.conditions)
    assert list(table.columns[:4]) == ["segmenter", "condition", "sample_id", "instance_id"]
    means = table.groupby("condition")["miou"].mean()
    ours = section.table.set_index("condition")["miou"]
    assert (means - ours).abs().max() < 1e-12
