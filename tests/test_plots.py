import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from samrobust.errors import RunError
from samrobust.report import plots
from samrobust.report.plots import BESIDE_POINTS, COLUMN_INCHES, line_styles, write_plots
from samrobust.report.summary import Section, summarise
from samrobust.types import SegmenterInfo
from tests.runs import CONTROL, SAM, STABLE, MadeUp, described

SPREADS = ("objects", "variance", "heat")
SHORT = ("exact-box", "box-noise-0.2", "box-noise-0.4")


def summary(folder: Path, protocol: dict[str, Any], *segmenters: SegmenterInfo) -> list[Section]:
    runs = [MadeUp(protocol=protocol, segmenter=segmenter) for segmenter in segmenters or (SAM,)]
    return summarise([run.store(folder) for run in runs])


def drawn(sections: list[Section]) -> dict[str, Figure]:
    styles = line_styles(sections)
    found = (pair for section in sections for pair in plots.figures_of(section, styles))
    return dict(found)


def line_of(axes: Axes, section: Section, segmenter: str) -> tuple[Any, Any]:
    """Return x and y of a segmenter's line; lines stand in the order of the rows."""
    place = list(section.table["segmenter"].unique()).index(segmenter)
    line = axes.get_lines()[place]
    return np.asarray(line.get_xdata(), np.float64), np.asarray(line.get_ydata(), np.float64)


def test_figures_are_written_as_png_and_pdf(tmp_path: Path) -> None:
    sections = summary(tmp_path / "runs", described("noisy-box", conditions=SHORT), SAM, CONTROL)
    paths = list(write_plots(sections, tmp_path / "plots"))
    names = ("level", "stability", "objects", "variance", "heat")
    stems = [f"noisy-box--scenes-6--{name}" for name in names]
    assert [path.name for path in paths] == [
        f"{stem}.{e}" for stem in stems for e in ("png", "pdf")
    ]
    with Image.open(paths[0]) as level, Image.open(paths[2]) as stability:
        assert (level.width, stability.width) == (1410, 680)  # 7.05 and 3.4 inches
    assert all(path.read_bytes()[:5] == b"%PDF-" for path in paths if path.suffix == ".pdf")


def test_the_same_scores_make_the_same_files(tmp_path: Path) -> None:
    sections = summary(tmp_path / "runs", described("stable-sam-table"))
    first, second = (list(write_plots(sections, tmp_path / name)) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_upper_axis_says_how_human_boxes_are(tmp_path: Path) -> None:
    (section,) = summary(tmp_path / "noise", described("noisy-box"), SAM)
    (above,) = drawn([section])["level"].axes[0].child_axes
    assert above.get_xlabel() == "human percentile of the median box"
    labels = [int(label.get_text()) for label in above.get_xticklabels()]
    np.testing.assert_allclose(labels, [0, 34, 64, 80, 89, 93, 96], atol=1)
    for name in ("human-box", "points"):  # the level is the percentile, or there is no box
        (section,) = summary(tmp_path / name, described(name), SAM)
        assert not drawn([section])["level"].axes[0].child_axes


def test_lines_are_scores_against_levels(tmp_path: Path) -> None:
    (section,) = summary(tmp_path, described("noisy-box", conditions=SHORT), SAM, STABLE)
    panels = drawn([section])["level"].axes
    assert [axes.get_ylabel() for axes in panels] == ["mIoU (%)", "mBIoU (%)", "mSF (%)"]
    assert panels[0].get_xlabel() == "box noise (fraction of side)"
    rows = section.table[section.table["segmenter"] == "stable-sam vit_b"]
    for axes, name in zip(panels, ("miou", "mbiou", "msf"), strict=True):
        x, y = line_of(axes, section, "stable-sam vit_b")
        with_score = rows[rows[name].notna()]
        np.testing.assert_allclose(x, with_score["level"])
        np.testing.assert_allclose(y, 100 * with_score[name])
        low, high = (100 * with_score[f"{name}_{end}"] for end in ("low", "high"))
        bars = np.array([path.vertices for path in axes.collections[1].get_paths()])
        np.testing.assert_allclose(bars[:, :, 1], np.column_stack([low, high]))


def test_intervals_of_segmenters_stand_beside_each_other_and_inside_the_axes(
    tmp_path: Path,
) -> None:
    (section,) = summary(tmp_path, described("noisy-box", conditions=SHORT), SAM, STABLE)
    figure = drawn([section])["level"]
    figure.draw_without_rendering()
    axes = figure.axes[0]
    first, second = (
        bars.get_transform().transform(bars.get_paths()[0].vertices) for bars in axes.collections
    )
    assert 72 * (second[0, 0] - first[0, 0]) / figure.dpi == pytest.approx(BESIDE_POINTS)
    ends = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    bottom, top = axes.get_ylim()
    assert bottom < ends[:, 1].min() < ends[:, 1].max() < top
    assert axes.get_xlim()[1] > 0.4


def test_stability_stands_against_accuracy_in_order_of_level(tmp_path: Path) -> None:
    (section,) = summary(tmp_path, described("noisy-box"))
    (axes,) = drawn([section])["stability"].axes
    x, y = line_of(axes, section, "sam vit_b")
    rows = section.table[section.table["msf"].notna()]
    np.testing.assert_allclose(x, 100 * rows["miou"])
    np.testing.assert_allclose(y, 100 * rows["msf"])
    (text,) = axes.texts
    assert isinstance(text, Annotation)
    assert text.get_text() == "0.6"
    aside = np.asarray(text.xyann)  # away from where the line comes from
    assert (np.sign(aside) == np.sign([x[-1] - x[0], y[-1] - y[0]])).all()


def test_conditions_without_a_level_are_numbered(tmp_path: Path) -> None:
    sections = summary(tmp_path, described("stable-sam-table"))
    figures = drawn(sections)
    assert list(figures) == ["stability", *SPREADS]
    (axes,) = figures["stability"].axes
    assert [text.get_text() for text in axes.texts] == ["(1)", "(2)", "(3)", "(4)"]
    (legend,) = figures["stability"].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [
        *("sam vit_b", "(1) box-noise-0.4", "(2) points-1", "(3) points-3", "(4) points-10")
    ]


def test_figures_have_a_title_where_one_is_asked_for(tmp_path: Path) -> None:
    sections = summary(tmp_path / "runs", described("noisy-box", conditions=SHORT))
    plain, titled = (
        next(write_plots(sections, tmp_path / name, titles=name == "titled"))
        for name in ("plain", "titled")
    )
    with Image.open(plain) as without, Image.open(titled) as image:
        assert image.width == without.width
        assert image.height > without.height
    (figure,) = [drawn(sections)["level"]]
    assert figure.get_suptitle() == ""
    plots.add_title(figure, sections[0].title)
    assert figure.get_suptitle().replace("\n", " ") == sections[0].title


def test_one_statistic_makes_a_narrow_figure(tmp_path: Path) -> None:
    protocol = {**described("points"), "metrics": ["iou"]}
    figures = drawn(summary(tmp_path, protocol))
    assert list(figures) == ["level", *SPREADS]
    assert figures["level"].get_figwidth() == COLUMN_INCHES
    (axes,) = figures["level"].axes
    assert axes.get_xlabel() == "points"


@pytest.mark.parametrize(
    ("protocol", "names"),
    [
        (described("gt-box"), []),
        (
            described("noisy-box", conditions=("box-noise-0.2",)) | {"metrics": ["iou"]},
            ["objects", "variance"],
        ),
        ({**described("noisy-box"), "metrics": ["hausdorff"]}, ["level"]),
        (described("gt-box") | {"metrics": ["hausdorff"]}, []),
    ],
    ids=["no level", "one level", "a plug-in's metric", "no statistic to draw"],
)
def test_no_empty_figure_is_drawn(
    tmp_path: Path, protocol: dict[str, Any], names: list[str]
) -> None:
    assert list(drawn(summary(tmp_path, protocol))) == names


def test_two_degradations_have_an_axis_each_and_share_the_exact_box(tmp_path: Path) -> None:
    noise, shift = described("noisy-box", conditions=SHORT), described("box-shift")
    protocol = {**noise, "conditions": [*noise["conditions"], *shift["conditions"][1:3]]}
    figures = drawn(summary(tmp_path, protocol))
    assert list(figures) == ["level-box-noise", "level-box-shift", "stability", *SPREADS]
    axes = figures["level-box-shift"].axes[0]
    np.testing.assert_allclose(np.asarray(axes.get_lines()[0].get_xdata()), [0.0, 0.05, 0.1])
    assert axes.get_xlabel() == "box shift (fraction of side)"
    assert len(figures["stability"].axes[0].get_lines()) == 2


def test_a_ladder_without_stability_is_left_out_of_that_figure(tmp_path: Path) -> None:
    noise, scale = described("noisy-box", conditions=SHORT), described("box-scale")
    protocol = {**noise, "conditions": [*noise["conditions"][1:], *scale["conditions"][:2]]}
    figures = drawn(summary(tmp_path, protocol))
    assert "level-box-scale" in figures
    assert len(figures["stability"].axes[0].get_lines()) == 1


def test_one_step_of_each_degradation_is_one_ladder(tmp_path: Path) -> None:
    protocol = described("noisy-box", conditions=SHORT[:2])
    figure = drawn(summary(tmp_path, protocol))["level"]
    np.testing.assert_allclose(np.asarray(figure.axes[0].get_lines()[0].get_xdata()), [0.0, 0.2])


def test_levels_that_are_no_parameter_are_called_levels(tmp_path: Path) -> None:
    protocol = described("points")
    for row in protocol["conditions"]:
        row["level"] += 0.5
    assert drawn(summary(tmp_path, protocol))["level"].axes[0].get_xlabel() == (
        "level of random-points"
    )


def test_segmenters_look_alike_everywhere_and_differ_from_each_other(tmp_path: Path) -> None:
    many = [SegmenterInfo(f"model-{number}", frozenset({"box"})) for number in range(12)]
    other = SegmenterInfo("ellipse", frozenset({"box"}), is_control=True)
    first = summary(tmp_path, described("gt-box"), *many, CONTROL, other)
    second = summary(tmp_path, described("points"), many[3], CONTROL)
    styles = line_styles(first + second)
    assert len(styles) == 14
    assert len({tuple(style.values()) for style in styles.values()}) == 14
    assert styles["model-3"] == line_styles(first)["model-3"]
    for name, style in styles.items():
        red, green, blue = to_rgb(style["color"])
        is_control = name in {"box-as-mask", "ellipse"}
        assert style["linestyle"] == ("--" if is_control else "-")
        assert not is_control or red == green == blue > 0


def test_published_values_are_not_drawn(tmp_path: Path) -> None:
    value = {"segmenter": "X", "dataset": "scenes", "condition": "box-noise-0.2", "metric": "iou"}
    run = MadeUp(reported=[{**value, "value": 0.5, "source": "paper"}])
    sections = summarise([run.store(tmp_path)])
    assert "X" in set(sections[0].table["segmenter"])
    assert len(drawn(sections)["level"].axes[0].get_lines()) == 1


def test_limits_trials_versions_and_odd_names_are_in_file_names(tmp_path: Path) -> None:
    protocol = {**described("points"), "name": "a/b c", "version": 2, "metrics": ["iou"]}
    run = MadeUp(protocol=protocol, limit=6, trials=4)
    png = next(write_plots(summarise([run.store(tmp_path / "runs")]), tmp_path / "plots"))
    assert png == tmp_path / "plots" / "a-b-c-v2--scenes-6--first-6--4-trials--level.png"


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    segmenter = SegmenterInfo("a$b$_\\frac", frozenset({"box"}), "x" * 70)
    protocol = {**described("points"), "metrics": ["iou"]}
    assert len(list(write_plots(summary(tmp_path / "runs", protocol, segmenter), tmp_path))) == 8


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    sections = summary(tmp_path / "runs", described("stable-sam-table"))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"stability\.png: cannot be written: File exists$"):
        list(write_plots(sections, tmp_path / "file"))


def test_reports_load_neither_pyplot_nor_torch() -> None:
    code = (
        "import sys, samrobust.report.plots, samrobust.report.tables; "
        "print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_each_object_has_its_quartiles_in_order_of_the_median(tmp_path: Path) -> None:
    (section,) = summary(tmp_path, described("noisy-box", conditions=SHORT), SAM, CONTROL)
    figure = drawn([section])["objects"]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["median", "quartiles", "range of trials", "at box-noise-0.4"]
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left") == "sam vit_b")
    scores = section.stored[section.segmenters.index("sam vit_b")].scores
    rows = scores[(scores["metric"] == "iou") & (scores["condition"] == "box-noise-0.4")]
    key = ["sample_id", "instance_id"]
    trials = 100 * rows.pivot_table("value", key, "trial", observed=True).to_numpy(np.float64)
    (line,) = axes.get_lines()
    np.testing.assert_allclose(np.asarray(line.get_ydata()), np.sort(np.median(trials, axis=1)))
    light = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert (light[:, 1].min(), light[:, 1].max()) == pytest.approx((trials.min(), trials.max()))


def test_bars_are_the_two_parts_of_the_variance(tmp_path: Path) -> None:
    (section,) = summary(tmp_path, described("noisy-box", conditions=SHORT))
    (axes,) = drawn([section])["variance"].axes
    rows = section.table[section.table["iou_var"].notna()]
    widths = [bar.get_width() for bar in axes.patches[:4]]  # type: ignore[attr-defined]
    expected = (1e4 * rows[["iou_var_between", "iou_var"]].to_numpy()).ravel()
    np.testing.assert_allclose(widths, np.maximum(expected, 0))


def test_the_heat_map_says_each_miou(tmp_path: Path) -> None:
    (section,) = summary(tmp_path, described("noisy-box", conditions=SHORT), SAM, CONTROL)
    axes, bar = drawn([section])["heat"].axes
    assert bar.get_ylabel() == "mIoU (%)"
    texts = sorted(text.get_text() for text in axes.texts)
    assert texts == sorted(f"{100 * value:.1f}" for value in section.table["miou"])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["box-as-mask", "sam vit_b"]


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([[51.0, 53.0]], (42.0, 62.0)),
        ([[99.0, 100.0]], (80.0, 100.0)),
        ([[0.5, 1.5]], (0.0, 20.0)),
        ([[30.0, np.nan, 80.0]], (30.0, 80.0)),
    ],
)
def test_small_differences_have_nearly_one_colour(
    values: list[list[float]], ends: tuple[float, float]
) -> None:
    assert plots.heat_range(np.array(values)) == pytest.approx(ends)


def test_many_conditions_make_a_wide_heat_map(tmp_path: Path) -> None:
    figures = drawn(summary(tmp_path, described("hq-sam-noise") | {"metrics": ["iou"]}))
    narrow = drawn(summary(tmp_path, described("points") | {"metrics": ["iou"]}))
    n_conditions = len(described("hq-sam-noise")["conditions"])
    wide = figures["heat"].get_figwidth() > narrow["heat"].get_figwidth()
    assert wide == (n_conditions > 9)
