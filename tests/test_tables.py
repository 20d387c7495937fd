import csv
import io
import re
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from samrobust.errors import RunError, UnknownNameError
from samrobust.report.formats import (
    Format,
    breakdown_csv,
    differences_csv,
    to_csv,
    to_latex,
    to_markdown,
    write_tables,
    write_text,
)
from samrobust.report.layout import Table
from samrobust.report.summary import Section, summarise
from samrobust.report.tables import terminal_tables, with_columns
from samrobust.types import DatasetInfo, SegmenterInfo
from tests.runs import CONTROL, PAIR, SAM, STABLE, MadeUp, described, member

NASTY = SegmenterInfo("a_b%c&d#e~f^g\\h{i}|j$k*l`m<n>", frozenset({"box"}), "two\nlines")
PROTOCOL = described("stable-sam-table")
SOURCES = ("Fan et al. 2025, 50 % & more", "Ke et al. 2023, Table_2")


def published(segmenter: str, source: str, metric: str, value: float) -> dict[str, str | float]:
    place = {"segmenter": segmenter, "dataset": "pair", "condition": "box-noise-0.4"}
    return {**place, "metric": metric, "value": value, "source": source}


REPORTED = [
    published("SAM ViT-L", SOURCES[0], "iou", 0.488),
    published("SAM ViT-L", SOURCES[0], "boundary-iou", 0.421),
    published("HQ-SAM ViT-L", SOURCES[1], "iou", 0.724),
]


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("runs")
    run = MadeUp(protocol=PROTOCOL, reported=REPORTED, n_samples=20)
    return summarise(
        [
            run.but(segmenter=segmenter, dataset=member(name)).store(folder)
            for name in PAIR
            for segmenter in (SAM, STABLE, CONTROL)
        ]
    )


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("runs")
    protocol = {**described("gt-box"), "name": "50%_of|it"}
    reported = [
        {**row, "dataset": "scenes", "condition": "exact-box", "source": f"{row['source']} \\x|y"}
        for row in REPORTED
    ]
    run = MadeUp(segmenter=NASTY, protocol=protocol, reported=reported)
    return summarise([run.store(folder)])


def rendered(table: Table) -> str:
    """Return what a terminal of 80 columns shows."""
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in table.header:
        grid.add_column(head)
    for row in table.rows:
        grid.add_row(*row)
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(grid)
    return capture.get()


def compiled(text: str, folder: Path) -> str:
    """Return what pdfTeX logs about an article with the tables in it."""
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex, which is not installed")
    preamble = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (folder / "paper.tex").write_text(f"{preamble}{text}\\end{{document}}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def cells(markdown: str) -> list[list[str]]:
    """Return the cells of all table rows, split where GitHub splits them."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


def test_csv_holds_every_row_in_fractions(sections: list[Section]) -> None:
    read = pd.read_csv(io.StringIO(to_csv(sections)), keep_default_na=False, na_values=[""])
    rows = pd.concat([section.table for section in sections], ignore_index=True)
    assert len(read) == len(rows) == 15 + 15 + 17
    for column in rows.columns[6:]:
        expected = rows[column].astype("float64").to_numpy()
        np.testing.assert_allclose(read[column].to_numpy(), expected, rtol=1e-5)
    assert set(read["dataset"]) == {*PAIR, "pair (mean of 2)"}
    assert set(read["marks"]) == {"selection single; frame longest-side"}
    assert set(read["source"]) == {"measured", *SOURCES}
    assert "iou_var_high" in read


def test_csv_survives_any_name(nasty: list[Section]) -> None:
    read = list(csv.DictReader(io.StringIO(to_csv(nasty))))
    assert read[0]["segmenter"] == NASTY.label
    assert read[0]["protocol"] == "50%_of|it"


def test_nothing_to_show_is_an_empty_text() -> None:
    assert to_csv([]).strip() == ""
    assert to_markdown([]) == ""
    assert terminal_tables([]) == []


def test_files_show_percent_with_intervals(sections: list[Section]) -> None:
    row = sections[0].table.iloc[4]
    assert (row["segmenter"], row["condition"]) == ("sam vit_b", "box-noise-0.4")
    value, low, high = (f"{100 * row[f'miou{end}']:.1f}" for end in ("", "_low", "_high"))
    line = next(
        line
        for line in to_markdown(sections[:1]).splitlines()
        if line.startswith("| sam vit_b | box-noise-0.4 |")
    )
    assert f"| {value} [{low}, {high}] |" in line
    assert rf"{value} & {{\scriptsize [{low}, {high}]}}" in to_latex(sections[:1])


def test_the_terminal_shows_half_widths(sections: list[Section]) -> None:
    row = sections[0].table.iloc[4]
    half = 100 * (row["msf_high"] - row["msf_low"]) / 2
    table = terminal_tables(sections)[0]
    assert table.header == ("segmenter", "condition", "mIoU", "mBIoU", "mSF", "IoU std")
    assert table.rows[4][4] == f"{100 * row['msf']:.1f} ±{half:.1f}"
    assert table.rows[1][4:] == ("–", "–")  # noqa: RUF001
    assert table.footnotes == (
        (
            "Percent; ± half of the 95 % interval, bootstrap over 20 images, 39 objects; with so "
            "few images it is rough."
        ),
        "Human percentiles of the median box: box-noise-0.4 89.",
    )


def test_a_table_fits_into_80_columns(sections: list[Section]) -> None:
    text = rendered(terminal_tables(sections)[2])
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    assert sum(line.startswith(" stable-sam vit_b") for line in lines) == 5
    assert len([line for line in lines if line]) == 2 + 17


def test_published_rows_have_daggers_and_sources(sections: list[Section]) -> None:
    table = terminal_tables(sections)[2]
    names = [row[0] for row in table.rows if row[1] == "box-noise-0.4"]
    assert names[-2:] == ["SAM ViT-L†1", "HQ-SAM ViT-L†2"]
    published_row = table.rows[names.index("SAM ViT-L†1") + 3]
    assert published_row[2:] == ("48.8", "42.1", "–", "–")  # noqa: RUF001
    assert table.footnotes[1:-1] == tuple(
        f"†{number} As published: {source}." for number, source in enumerate(SOURCES, start=1)
    )
    assert r"SAM ViT-L\textsuperscript{$\dagger$1}" in to_latex(sections)


def test_one_source_has_a_plain_dagger(tmp_path: Path) -> None:
    run = MadeUp(protocol=PROTOCOL, dataset=member("coift"), reported=REPORTED[:2])
    other = run.but(dataset=member("hrsod"))
    *_, mean = summarise([run.store(tmp_path), other.store(tmp_path)])
    (table,) = terminal_tables([mean])
    assert "SAM ViT-L†" in {row[0] for row in table.rows}
    assert table.footnotes[1] == f"† As published: {SOURCES[0]}."


def test_columns_without_values_are_not_shown(tmp_path: Path) -> None:
    protocol = {**described("noisy-box"), "metrics": ["boundary-iou", "hausdorff"]}
    section = summarise([MadeUp(protocol=protocol).store(tmp_path)])
    (table,) = terminal_tables(section)
    assert table.header == ("segmenter", "condition", "mBIoU", "hausdorff")
    value, half = table.rows[0][3].split(" ±")
    row = section[0].table.iloc[0]
    assert float(value) == pytest.approx(row["hausdorff"], rel=1e-3)
    assert float(half) == pytest.approx(
        (row["hausdorff_high"] - row["hausdorff_low"]) / 2, rel=0.05
    )
    assert f"| {row['hausdorff']:.4g} [{row['hausdorff_low']:.4g}, " in to_markdown(section)


def test_one_image_shows_no_interval(tmp_path: Path) -> None:
    section = summarise([MadeUp(protocol=PROTOCOL, n_samples=1).store(tmp_path)])
    assert "[" not in to_markdown(section)
    assert not any("±" in cell for row in terminal_tables(section)[0].rows for cell in row)


def test_markdown_names_cannot_break_a_table(nasty: list[Section]) -> None:
    text = to_markdown(nasty)
    rows = cells(text)
    assert {len(row) for row in rows} == {4, 5}  # of the main table, and of one by size
    assert {len(row) for row in rows[:5]} == {4}
    assert rows[2][0].strip() == r"a_b%c&d#e\~f^g\\h{i}\|j$k\*l\`m\<n> two lines"
    assert text.startswith(r"### 50%\_of\|it v1 on scenes/6: selection single")


def test_markdown_escapes_underscores_only_where_they_are_emphasis(tmp_path: Path) -> None:
    segmenter = SegmenterInfo("_draft_", frozenset({"box"}), "vit_b")
    section = summarise([MadeUp(segmenter=segmenter).store(tmp_path)])
    assert r"| \_draft\_ vit_b |" in to_markdown(section)


def test_latex_compiles_and_fits_the_page(sections: list[Section], tmp_path: Path) -> None:
    text = to_latex(sections)
    for edge in ("begin", "end"):
        assert len(re.findall(rf"\\{edge}{{table\*?}}", text)) == 2 * len(sections)
    log = compiled(text, tmp_path)
    assert "Overfull" not in log


def test_latex_with_any_name_compiles(nasty: list[Section], tmp_path: Path) -> None:
    text = to_latex(nasty)
    assert (
        r"a\_b\%c\&d\#e\textasciitilde{}f\textasciicircum{}g\textbackslash{}h\{i\}\textbar{}j"
        r"\$k*l`m\textless{}n\textgreater{} two lines &"
    ) in text
    compiled(text, tmp_path)


def test_latex_captions_say_what_was_measured(tmp_path: Path) -> None:
    run = MadeUp(n_samples=5, limit=5, trials=4, missing=frozenset({"image-0"}))
    captions = re.findall(r"\\caption{(.*)}", to_latex(summarise([run.store(tmp_path)])))
    assert captions[0] == (
        "noisy-box v1 on scenes/6: first 5 images; 4 trials; incomplete: 4 of 5 images; "
        "selection single; frame longest-side. mIoU, mBIoU, mSF, IoU std in percent: means over 8 "
        "objects, each prompted 1 to 4 times a condition (its trials). mIoU: intersection over "
        "union with the target; mBIoU: the same of bands along the boundary; mSF: stability, IoU "
        "of an object's masks with their union; IoU std: standard deviation over an object's "
        "trials. In brackets the 95 \\% interval, bootstrap over 4 images; with so few images it "
        "is rough."
    )
    assert "Low 10 \\%: mean IoU of the lowest tenth of all trials" in captions[1]


def test_latex_tables_are_as_wide_as_they_need_and_have_labels(tmp_path: Path) -> None:
    runs = [
        MadeUp(n_samples=9, segmenter=segmenter, dataset=dataset).store(tmp_path)
        for segmenter in (SAM, STABLE)
        for dataset in (DatasetInfo("scenes", "6", "f1"), DatasetInfo("scenes", "6", "f2"))
    ]
    sections = summarise(runs)
    text = to_latex(sections)
    labels = re.findall(r"\\label{(.*)}", text)
    assert labels[:2] == ["tab:noisy-box-scenes-6-f1", "tab:noisy-box-scenes-6-f1-trials"]
    assert len(set(labels)) == len(labels) == 4
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 4
    narrow = to_latex(with_columns(sections[:1], ["mIoU", "msf"]))
    assert re.findall(r"\\begin{(table.*?)}", narrow) == ["table"]
    assert ("Bold:" in narrow) == (r"\textbf" in narrow)
    compiled(f"{text}\n{narrow}", tmp_path)


def test_columns_choose_what_tables_show(sections: list[Section]) -> None:
    chosen = with_columns(sections, ["msf", "low 10 %", "MIOU"])
    (table, *_) = tables = terminal_tables(chosen, details=True)
    assert table.header == ("segmenter", "condition", "mSF", "low 10 %", "mIoU")
    assert "Low 10 %: mean IoU of the lowest tenth of all trials." in table.footnotes[0]
    assert not any("over trials" in each.title for each in tables)
    assert to_csv(chosen) == to_csv(sections)
    assert "| segmenter | condition | mSF | low 10 % | mIoU |" in to_markdown(chosen)
    assert len(re.findall(r"multicolumn\{2\}\{c\}", to_latex(chosen[:1]))) == 3
    with pytest.raises(UnknownNameError, match=r"unknown column 'mIo'\. Did you mean 'mIoU'"):
        with_columns(sections, ["mIo"])


@pytest.mark.parametrize("formats", [("csv", "md", "tex"), ("md",)])
def test_tables_are_written(
    sections: list[Section], tmp_path: Path, formats: Sequence[Format]
) -> None:
    folder = tmp_path / "new" / "folder"
    written = write_tables(sections, folder, formats=formats)
    names = [f"tables.{ending}" for ending in formats]
    if "csv" in formats:
        names[1:1] = ["differences.csv", "breakdown.csv"]
    assert [path.name for path in written] == names
    assert (folder / "tables.md").read_text(encoding="utf-8") == to_markdown(sections)


def test_a_file_that_cannot_be_written_is_one_line(sections: list[Section], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError) as refusal:
        write_tables(sections, tmp_path / "file")
    assert str(refusal.value) == f"{tmp_path}/file/tables.csv: cannot be written: File exists"


def test_no_table_is_cut_short(sections: list[Section], tmp_path: Path) -> None:
    write_tables(sections[:1], tmp_path, formats=["md"])
    before = (tmp_path / "tables.md").read_text(encoding="utf-8")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(RunError, match=r"tables\.md: cannot be written: File too large"):
            write_tables(sections[:1], tmp_path, formats=["md"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["tables.md"]
    assert (tmp_path / "tables.md").read_text(encoding="utf-8") == before


def test_links_stay_and_devices_are_written_to(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "there.csv")
    write_text(tmp_path / "link.csv", "text")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there.csv").read_text(encoding="utf-8") == "text"
    (tmp_path / "null").symlink_to("/dev/null")
    write_text(tmp_path / "null", "text")
    assert (tmp_path / "null").is_char_device()


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Section:
    """Return two segmenters far apart and a third that is like the better one."""
    folder = tmp_path_factory.mktemp("runs")
    run = MadeUp(protocol=PROTOCOL, n_samples=40)
    worse = run.but(segmenter=CONTROL, accuracy=0.3)
    return summarise(
        [run.store(folder), run.but(segmenter=STABLE).store(folder), worse.store(folder)]
    )[0]


def test_only_what_beats_all_others_is_bold(unlike: Section, tmp_path: Path) -> None:
    (table,) = terminal_tables([unlike])
    assert not any(column == 2 for _, column in table.bold)  # the two best tie
    best = summarise(
        [
            MadeUp(protocol=PROTOCOL, n_samples=40, segmenter=segmenter, accuracy=accuracy).store(
                tmp_path
            )
            for segmenter, accuracy in ((SAM, 0.9), (CONTROL, 0.3))
        ]
    )
    (table,) = terminal_tables(best)
    bold = {table.rows[row][0] for row, column in table.bold if column in (2, 3, 4)}
    assert bold == {"sam vit_b"}
    assert {column for _, column in table.bold} >= {2, 3, 4}
    assert table.footnotes[-1].startswith("Bold: better than every other segmenter, no tie")
    place = next(iter(sorted(table.bold)))
    cell = table.rows[place[0]][place[1]].split()[0]
    assert f"**{cell} [" in to_markdown(best)
    assert rf"\textbf{{{cell}}}" in to_latex(best)
    assert "Overfull" not in compiled(to_latex(best), tmp_path)


def test_details_are_over_trials_by_class_and_of_pairs(unlike: Section) -> None:
    tables = terminal_tables([unlike], details=True)
    titles = [table.title.rpartition("; ")[2] for table in tables[1:]]
    assert titles == [
        "over trials", "by size of the object", "by thinness of the object", "differences",
    ]  # fmt: skip
    for table in tables:
        assert max(map(len, rendered(table).splitlines())) <= 80
        assert len(table.segmenters) == len(table.rows)
    over_trials, sizes, _, pairs = tables[1:]
    row = unlike.measured[unlike.measured["iou_low"].notna()].iloc[3]
    (cells,) = [
        each for each in over_trials.rows if each[:2] == (row["segmenter"], row["condition"])
    ]
    assert cells[2].split()[0] == f"{100 * row['iou_low']:.1f}"
    assert cells[4].split()[0] == f"{1e4 * row['iou_var_between']:.0f}"
    assert sizes.header == ("segmenter", "condition", "small", "medium", "large")
    assert (
        "small below 1024 (40), medium below 9216 (26), large the rest (13)" in sizes.footnotes[0]
    )
    tie = next(each for each in pairs.rows if each[0] == "sam vit_b - stable-sam vit_b")
    assert tie[-1] == "tie"
    assert {each[-1] for each in pairs.rows} >= {"tie", "sam vit_b"}


def test_differences_and_classes_have_files_of_their_own(unlike: Section) -> None:
    differences = pd.read_csv(io.StringIO(differences_csv([unlike])))
    assert {"protocol", "statistic", "p_holm", "is_tie"} <= set(differences)
    assert len(differences) == len(unlike.differences)
    classes = pd.read_csv(io.StringIO(breakdown_csv([unlike])))
    assert set(classes["class"]) == {"small", "medium", "large", "compact", "winding", "thin"}
