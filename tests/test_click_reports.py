"""What reports say of conversations, with segmenters of which that is known."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from samrobust.errors import ProtocolError
from samrobust.evaluation.runner import evaluate
from samrobust.protocol import load_protocol
from samrobust.report.formats import to_csv, to_latex, to_markdown
from samrobust.report.layout import records
from samrobust.report.page import page
from samrobust.report.scores import click_statistics
from samrobust.report.summary import Section, summarise
from samrobust.report.tables import glance_table, terminal_tables
from samrobust.runs.store import Run
from samrobust.types import Image, Instance, Prediction, PromptBatch, Sample, SegmenterInfo
from tests.conftest import MemoryDataset, rectangle

N_CLICKS = 6
HEAD = f"""name = "talk"
version = 1
summary = "a conversation"
source = "tests"
seed = 3
trials = 1
selection = "single"
metrics = ["iou"]

[[conditions]]
name = "deepest"
interaction = {{ clicks = {N_CLICKS} }}
"""
GROUPS = HEAD + "".join(
    f"""
[[conditions]]
name = "group-{group}"
interaction = {{ policy = "groups", group = {group}, clicks = {N_CLICKS} }}
"""
    for group in range(1, 11)
)
REPORTED = """
[[reported]]
segmenter = "Paper"
dataset = "memory"
condition = "deepest@6"
metric = "noc-90"
value = 4.25
source = "Table 1"
"""


class AfterClicks:
    """Answers with the object of the first click from the n-th click on; before with a part of it.

    Args:
        needed: number of clicks.
        likes_centres: whether it needs one click alone where the first one is deep in the object.
        forgets: whether it loses the object again with the last click.
    """

    def __init__(self, needed: int, *, likes_centres: bool = False, forgets: bool = False) -> None:
        self.info = SegmenterInfo(f"after-{needed}", frozenset({"box", "points"}))
        self._needed = needed
        self._likes_centres = likes_centres
        self._forgets = forgets

    def encode(self, images: Sequence[Image]) -> list[None]:
        raise NotImplementedError  # it must know the sample

    def encode_sample(self, sample: Sample) -> Sample:
        return sample

    def predict(
        self,
        embedding: Sample,
        prompts: PromptBatch,
        *,
        multimask: bool = False,  # noqa: ARG002
    ) -> Prediction:
        masks = []
        for prompt in prompts.split():
            x, y = prompt.points[0].astype(int)
            (mask,) = (one.mask for one in embedding.instances if one.mask[y, x])
            depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            is_central = depth[y, x] > 0.6 * depth.max()
            needed = 1 if self._likes_centres and is_central else self._needed
            n = len(prompt.points)
            knows = n >= needed and not (self._forgets and n == N_CLICKS)
            part = np.zeros_like(mask)
            part[y, x] = True
            masks.append(mask if knows else part)
        return Prediction(torch.from_numpy(np.stack(masks)[:, None]), torch.zeros(len(masks), 1))


@pytest.fixture
def dataset() -> MemoryDataset:
    """Return three images of two objects each, large enough that one pixel is no answer."""
    size_hw = (41, 67)
    image = np.zeros((*size_hw, 3), np.uint8)
    return MemoryDataset(
        [
            Sample(
                name,
                image,
                [
                    Instance("1", rectangle(size_hw, (0, 5, 20, 30 + number))),
                    Instance("2", rectangle(size_hw, (30, 2, 61 - number, 33))),
                ],
            )
            for number, name in enumerate("abc")
        ]
    )


def runs_of(
    folder: Path, dataset: MemoryDataset, *segmenters: AfterClicks, text: str = HEAD
) -> list[Run]:
    path = folder / "talk.toml"
    path.write_text(text)
    return evaluate(
        list(segmenters), dataset, str(path), results=folder / "results", keep_masks="worst"
    )


def row_of(section: Section, segmenter: str, condition: str) -> "pd.Series[float]":
    table = section.table
    (place,) = np.flatnonzero((table["segmenter"] == segmenter) & (table["condition"] == condition))
    return table.iloc[place]


def test_clicks_are_counted_until_the_threshold_is_met_and_not_rounded_past_it() -> None:
    ious = np.array([[0.2, 0.9], [0.9, 0.5], [0.85, 0.5], [0.949, 0.5]], np.float32)
    found = click_statistics(ious, 1)
    assert found["noc_80"].tolist() == [2, 1]
    assert found["noc_85"].tolist() == [2, 1]
    assert found["noc_90"].tolist() == [2, 1]
    assert found["noc_95"].tolist() == [4, 4]
    assert found["nof_95"].tolist() == [1, 1]
    assert found["nof_90"].tolist() == [0, 0]
    assert found["click_fell"] == pytest.approx([0, 1 / 3])
    areas = [np.trapezoid(of_trial) / 3 for of_trial in ious.T.astype(float)]
    assert found["click_auc"] == pytest.approx(areas)
    of_box = click_statistics(ious, 0)
    assert of_box["noc_90"].tolist() == [1, 0]
    assert of_box["noc_95"].tolist() == [3, 3]
    assert "click_auc" not in click_statistics(ious[:1], 1)


def test_a_segmenter_that_is_perfect_after_k_clicks_needs_k(
    tmp_path: Path, dataset: MemoryDataset
) -> None:
    segmenters = [AfterClicks(1), AfterClicks(3), AfterClicks(9), AfterClicks(2, forgets=True)]
    (section,) = summarise(runs_of(tmp_path, dataset, *segmenters))
    for name, noc, nof, auc, fell in (
        ("after-1", 1, 0, 1.0, 0.0),
        ("after-3", 3, 0, 3.5 / 5, 0.0),
        ("after-9", 6, 1, 0.0, 0.0),
        # it is perfect after 2 clicks, and asked no more
        ("after-2", 2, 0, 4.5 / 5, 0.0),
    ):
        row = row_of(section, name, "deepest@6")
        assert [row[f"noc_{at}"] for at in (80, 85, 90, 95)] == [noc] * 4
        assert [row[f"nof_{at}"] for at in (80, 85, 90, 95)] == [nof] * 4
        assert row["click_auc"] == pytest.approx(auc, abs=2e-3)
        assert row["click_fell"] == fell
        assert np.isnan(row_of(section, name, "deepest@5")["noc_90"])
    assert row_of(section, "after-3", "deepest@2")["miou"] < 0.01
    assert row_of(section, "after-3", "deepest@3")["miou"] == 1
    assert section.differences["statistic"].isin(["noc_90"]).any()


def test_tables_show_some_turns_and_the_clicks_that_are_needed(
    tmp_path: Path, dataset: MemoryDataset
) -> None:
    sections = summarise(runs_of(tmp_path, dataset, AfterClicks(2), AfterClicks(3)))
    assert sections[0].shown_conditions == ["deepest@1", "deepest@3", "deepest@5", "deepest@6"]
    main, clicks = terminal_tables(sections)
    assert main.header == ("segmenter", "condition", "mIoU")
    assert len(main.rows) == 2 * 4
    assert clicks.title.endswith("; number of clicks")
    assert clicks.header[2:6] == ("NoC@80", "NoC@85", "NoC@90", "NoC@95")
    assert [row[4].split()[0] for row in clicks.rows] == ["2.00", "3.00"]
    assert any("NoC@t: clicks until" in note for note in clicks.footnotes)
    assert clicks.footnotes[-1] == "With each click given the logits of their last answer: none."
    assert glance_table(sections[0]) is None
    assert "noc_90_low" in to_csv(sections)
    assert to_csv(sections).count("deepest@2") > 0
    assert "number of clicks" in to_markdown(sections)
    assert "deepest@2" not in to_markdown(sections)
    assert "deepest@6" in to_latex(sections)
    figures = sections[0].figures()
    assert figures["level"].axes[0].get_xlabel() == "clicks"
    (line, *_) = figures["level"].axes[0].lines
    assert np.asarray(line.get_xdata()).tolist() == [1, 2, 3, 4, 5, 6]


def test_published_numbers_of_clicks_stand_beside_ours(
    tmp_path: Path, dataset: MemoryDataset
) -> None:
    (section,) = summarise(runs_of(tmp_path, dataset, AfterClicks(3), text=HEAD + REPORTED))
    _, clicks = terminal_tables([section])
    assert [row[4].split()[0] for row in clicks.rows] == ["3.00", "4.25"]
    assert clicks.rows[1][0] == "Paper†"
    path = tmp_path / "wrong.toml"
    path.write_text(HEAD + REPORTED.replace("4.25", "21.0"))
    with pytest.raises(ProtocolError, match=r"a reported value must be in \[0, 20\], got 21"):
        load_protocol(str(path))


def test_groups_of_clicks_are_compared(tmp_path: Path, dataset: MemoryDataset) -> None:
    same, picky = AfterClicks(2), AfterClicks(4, likes_centres=True)
    runs = runs_of(tmp_path, dataset, same, picky, text=GROUPS)
    (section,) = summarise(runs)
    of_same, of_picky = records(section.click_groups)
    assert [of_same[name] for name in ("noc_90", "dgr", "nsr")] == [2, 0, 0]
    rows = runs[1].scores.astype({"condition": str})
    rows = rows[rows["condition"].str.startswith("group")].copy()
    rows[["group", "n"]] = rows["condition"].str.extract(r"group-(\d+)@(\d+)").astype(int)
    solved = rows[rows["value"] >= 0.9]
    table = solved.pivot_table("n", ["sample_id", "instance_id"], "group", "min", observed=True)
    wanted = (table[1].mean() - table[10].mean()) / table[10].mean()
    assert wanted > 0.5
    assert of_picky["dgr"] == pytest.approx(wanted)
    spread = table.std(axis=1).mean() / table.to_numpy().mean()
    assert of_picky["nsr"] == pytest.approx(spread)
    assert of_picky["dgr_low"] <= wanted <= of_picky["dgr_high"]
    assert terminal_tables([section])[2].title.endswith("; groups of clicks")


def test_the_page_shows_conversations_click_by_click(
    tmp_path: Path, dataset: MemoryDataset
) -> None:
    sections = summarise(runs_of(tmp_path, dataset, AfterClicks(3)))
    text = page(sections)
    assert 'data-kind="talk"' in text
    for title in ("1 click: IoU 0", "2 clicks: IoU 0", "3 clicks: IoU 100", "6 clicks: IoU 100"):
        assert title in text
    assert "4 clicks: IoU" not in text
