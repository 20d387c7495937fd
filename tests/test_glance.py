from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samrobust.report.formats import to_markdown
from samrobust.report.plots import line_styles, spread_figures
from samrobust.report.summary import summarise
from samrobust.report.tables import glance_table
from samrobust.runs.store import read_run
from tests.conftest import Shell
from tests.runs import CONTROL, PAIR, SAM, STABLE, MadeUp, described, member

NOISY = described("noisy-box", conditions=("exact-box", "box-noise-0.2", "box-noise-0.4"))
RUN = MadeUp(protocol=NOISY, n_samples=40)


def test_the_mean_is_over_degraded_conditions_and_the_drop_is_to_it(tmp_path: Path) -> None:
    runs = [RUN.but(segmenter=segmenter).store(tmp_path) for segmenter in (SAM, CONTROL)]
    (section,) = summarise(runs)
    assert list(section.glance["segmenter"]) == ["box-as-mask", "sam vit_b"]  # controls first
    row = section.glance.iloc[1]
    values = section.table[section.table["segmenter"] == "sam vit_b"].set_index("condition")["miou"]
    mean = (values["box-noise-0.2"] + values["box-noise-0.4"]) / 2
    assert (row["statistic"], row["n_conditions"]) == ("miou", 2)
    assert row["exact"] == pytest.approx(values["exact-box"])
    assert row["mean"] == pytest.approx(mean)
    assert row["drop"] == pytest.approx(values["exact-box"] - mean)
    assert row["relative"] == pytest.approx(1 - mean / values["exact-box"])
    for name in ("exact", "mean", "drop", "relative"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    apart = np.hypot(*(row[f"{name}_high"] - row[f"{name}_low"] for name in ("exact", "mean")))
    # made-up conditions do not depend on each other
    assert row["drop_high"] - row["drop_low"] == pytest.approx(apart, rel=0.2)


def test_without_an_exact_prompt_there_is_no_drop(tmp_path: Path) -> None:
    row = summarise([RUN.but(protocol=described("points")).store(tmp_path)])[0].glance.iloc[0]
    assert row["mean_low"] < row["mean"] < row["mean_high"]
    assert row[["exact", "drop", "drop_low", "relative", "relative_high"]].isna().all()
    assert row["n_conditions"] == 5


def test_one_condition_has_no_glance_and_one_image_no_interval(tmp_path: Path) -> None:
    assert summarise([RUN.but(protocol=described("gt-box")).store(tmp_path)])[0].glance.empty
    row = summarise([RUN.but(n_samples=1).store(tmp_path)])[0].glance.iloc[0]
    assert row["drop"] == row["exact"] - row["mean"]
    assert row[["mean_low", "drop_high"]].isna().all()


def test_other_metrics_and_groups_have_a_glance_too(tmp_path: Path) -> None:
    protocol = {**NOISY, "metrics": ["hausdorff"]}
    (section,) = summarise([RUN.but(protocol=protocol).store(tmp_path)])
    assert section.glance["statistic"].tolist() == ["hausdorff"]
    runs = [RUN.but(segmenter=STABLE, dataset=member(name)).store(tmp_path) for name in PAIR]
    *members, mean = summarise(runs)
    expected = np.mean([section.glance["mean"].iloc[0] for section in members])
    assert mean.glance["mean"].iloc[0] == pytest.approx(expected)


def test_a_small_table_stands_above_the_main_one(shell: Shell) -> None:
    for segmenter in (SAM, CONTROL):
        RUN.but(segmenter=segmenter).store(Path("results"))
    (section,) = summarise([read_run(folder) for folder in sorted(Path("results").iterdir())])
    row = section.glance.iloc[0]
    half = (row["drop_high"] - row["drop_low"]) / 2
    text = shell("report").out
    glance, main = text.index("at a glance"), text.index("condition ")
    assert glance < main
    assert "exact mIoU" in text[glance:main]
    assert "mean of 2" in text[glance:main]
    assert f"{100 * row['drop']:.1f} ±{100 * half:.1f}" in text[glance:main]
    assert f"{100 * row['relative']:.1f} ±" in text[glance:main]
    interval = f"[{100 * row['mean_low']:.1f}, {100 * row['mean_high']:.1f}]"
    markdown = to_markdown([section])
    assert f"| {100 * row['mean']:.1f} {interval} |" in markdown.partition("condition")[0]


def test_a_metric_in_its_own_unit_drops_in_it(tmp_path: Path) -> None:
    protocol = {**NOISY, "metrics": ["hausdorff"]}
    (section,) = summarise([RUN.but(protocol=protocol).store(tmp_path)])
    table = glance_table(section)
    assert table is not None
    row = section.glance.iloc[0]
    assert table.rows[0][3].startswith(f"{row['drop']:.4g} ±")
    assert table.rows[0][4].startswith(f"{100 * row['relative']:.1f} ±")
    assert (
        glance_table(summarise([MadeUp(protocol=described("gt-box")).store(tmp_path)])[0]) is None
    )


def test_decodes_stand_beside_the_score_where_a_remedy_needs_more_than_one(tmp_path: Path) -> None:
    dear = replace(SAM, variant="vit_b + medoid:5", settings={**SAM.settings, "decodes": 5})
    plain = RUN.but(segmenter=SAM).store(tmp_path)
    (section,) = summarise([plain, RUN.but(segmenter=dear).store(tmp_path)])
    table = glance_table(section)
    assert table is not None
    assert table.header[:2] == ("segmenter", "decodes")
    assert [row[1] for row in table.rows] == ["1", "5"]
    assert "cost" in dict(spread_figures(section, line_styles([section])))
    (alone,) = summarise([plain])
    table = glance_table(alone)
    assert table is not None
    assert "decodes" not in table.header
    assert "cost" not in dict(spread_figures(alone, line_styles([alone])))
