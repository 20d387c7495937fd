"""The search for the worst prompt, on segmenters of which every answer is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torchvision.ops import complete_box_iou_loss

from samrobust.degradations.human import SCALE, SHAPE
from samrobust.degradations.search import WorstBox, WorstPoint
from samrobust.evaluation.loop import Evaluated, LoopOptions
from samrobust.evaluation.runner import evaluate
from samrobust.protocol import load_protocol
from samrobust.report.summary import Section, summarise
from samrobust.report.tables import terminal_tables
from samrobust.runs.manifest import SearchRow
from samrobust.runs.store import read_masks, read_searches
from samrobust.seeding import keyed_generator
from samrobust.types import (
    Asked,
    Instance,
    Mask,
    Prediction,
    PromptBatch,
    Sample,
    SegmenterInfo,
)
from tests.conftest import (
    GrownBox,
    MemoryDataset,
    Shell,
    blobs,
    evaluate_one,
    rectangle,
)

MASKS = {
    "in the middle": rectangle((60, 81), (20, 11, 51, 40)),
    "at the border": rectangle((41, 67), (0, 0, 20, 40)),
    "all of the image": np.ones((23, 31), np.bool_),
    "one pixel": rectangle((50, 33), (32, 49, 32, 49)),
    "a line": rectangle((33, 50), (3, 7, 44, 7)),
    "blobs": blobs(np.random.default_rng(3), (52, 75)),
}


def asked(search: WorstBox | WorstPoint, mask: Mask) -> tuple[PromptBatch, Any]:
    """Return all prompts of a search in which the last ones asked are always the worst."""
    space = search.start(mask, keyed_generator("test"))
    prompts = space.starts
    for number in range(search.rounds):
        ious = 1 - np.arange(len(prompts)) / 1000
        prompts = PromptBatch.join([prompts, space.after(number, Asked(prompts, ious))])
    return prompts, space


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("percentile", [95, 30])
def test_every_box_is_plausible_and_inside_the_image(name: str, percentile: float) -> None:
    mask = MASKS[name]
    prompts, space = asked(WorstBox(percentile=percentile), mask)
    boxes = torch.from_numpy(np.asarray(prompts.boxes, np.float64))
    assert len(boxes) == WorstBox().n_asked == 193
    y, x = np.nonzero(mask)
    exact = torch.tensor([[x.min(), y.min(), x.max(), y.max()]], dtype=torch.float64)
    assert torch.equal(boxes[:1], exact)
    last = torch.tensor(mask.shape[::-1]) - 1
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= last).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    ends = torch.tensor([0.0, 0, 1, 1])
    losses = complete_box_iou_loss(boxes + ends, (exact + ends).expand_as(boxes))
    percentiles = 100 * stats.gamma(SHAPE, scale=SCALE).cdf(losses.numpy())
    assert space.percentiles(prompts) == pytest.approx(percentiles, abs=1e-3)
    assert (percentiles <= percentile + 1e-3).all()


@pytest.mark.parametrize("name", MASKS)
def test_every_point_is_on_the_object_and_as_deep_as_clicks(name: str) -> None:
    mask = MASKS[name]
    prompts, space = asked(WorstPoint(percentile=60), mask)
    x, y = prompts.points[:, 0].astype(int).T
    assert mask[y, x].all()
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    deeper = [100 * depth[depth > of].sum() / depth.sum() for of in depth[y, x]]
    assert space.percentiles(prompts) == pytest.approx(deeper, abs=1e-6)
    assert max(deeper) <= 60 + 1e-6
    assert depth[y[0], x[0]] == depth.max()
    assert (prompts.labels == 1).all()


class Recorder(GrownBox):
    """Fills the box, and keeps the boxes that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[np.ndarray] = []

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        self.boxes += list(np.asarray(prompts.boxes))
        return super().predict(embedding, prompts, multimask=multimask)


def one_object(mask: Mask) -> MemoryDataset:
    image = np.zeros((*mask.shape, 3), np.uint8)
    return MemoryDataset([Sample("a", image, [Instance("1", mask)])])


def found_by(segmenter: GrownBox, dataset: MemoryDataset, *, batch_size: int = 16) -> Evaluated:
    """Return what evaluating the first image of a data set gives."""
    options, protocol = LoopOptions(batch_size), load_protocol("worst-box")
    (found,) = evaluate_one(segmenter, dataset, protocol, sample_ids=["a"], options=options)
    assert isinstance(found, Evaluated)
    return found


@pytest.mark.parametrize("name", MASKS)
def test_worst_exact_and_best_are_those_of_all_prompts_that_were_asked(name: str) -> None:
    mask, segmenter = MASKS[name], Recorder()
    found = found_by(segmenter, one_object(mask))
    (row,) = found.searches
    assert found.n_prompts == len(segmenter.boxes) == 1 + 193
    assert row.n_asked == 193
    ious = []
    for box in segmenter.boxes:
        x0, y0, x1, y1 = box.round().astype(int)
        filled = rectangle((mask.shape[0], mask.shape[1]), (x0, y0, x1, y1))
        ious.append((filled & mask).sum() / (filled | mask).sum())
    assert row.worst == pytest.approx(min(ious))
    assert row.best == pytest.approx(max(ious))
    assert row.exact == pytest.approx(ious[0])
    assert row.worst <= row.exact <= row.best
    scores = {score.condition: score.value for score in found.scores if score.metric == "iou"}
    assert scores == pytest.approx(
        {"exact-box": row.exact, "worst-box": row.worst, "best-box": row.best}
    )


def test_rounds_find_a_worse_box_than_the_start(small_dataset: MemoryDataset) -> None:
    whole = _worst(small_dataset, WorstBox())
    start = _worst(small_dataset, WorstBox(rounds=1, parents=1, children=1))
    assert (whole.n_asked, start.n_asked) == (193, 66)
    assert whole.exact == start.exact
    assert whole.worst < start.worst


def _worst(dataset: MemoryDataset, search: WorstBox) -> SearchRow:
    """Return what a search finds for the first object of a data set."""
    protocol = load_protocol("worst-box")
    condition = replace(protocol.conditions[1], degradation=search)
    own = replace(protocol, conditions=(condition,))
    options = LoopOptions()
    (found,) = evaluate_one(GrownBox(), dataset, own, sample_ids=["a"], options=options)
    assert isinstance(found, Evaluated)
    return found.searches[0]


def test_the_percentile_that_breaks_is_the_lowest_of_the_boxes_that_break() -> None:
    class Breaks(GrownBox):
        """Fills the box, but gives nothing for one wider than 30 columns."""

        def predict(
            self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
        ) -> Prediction:
            found = super().predict(embedding, prompts, multimask=multimask)
            boxes = np.asarray(prompts.boxes)
            keeps = torch.from_numpy(boxes[:, 2] - boxes[:, 0] < 30)
            return Prediction(found.masks & keeps[:, None, None, None], found.quality)

    mask = rectangle((70, 90), (30, 20, 50, 50))
    (row,) = found_by(Breaks(), one_object(mask)).searches
    # 21 columns become 31 at a box of the same rows: IoU 21/31, centres up to 5 apart
    wider = [(x, 20, x + 30, 50) for x in range(20, 31)]
    ends = torch.tensor([0.0, 0, 1, 1])
    tight = torch.tensor([[30.0, 20, 50, 50]]) + ends
    losses = complete_box_iou_loss(torch.tensor(wider) + ends, tight.expand(len(wider), 4))
    least = 100 * stats.gamma(SHAPE, scale=SCALE).cdf(losses.min().item())
    assert row.worst == 0
    assert row.breaks_at is not None
    assert least - 1e-3 <= row.breaks_at <= 95


def test_the_batch_size_changes_nothing(small_dataset: MemoryDataset) -> None:
    one, many = (found_by(GrownBox(), small_dataset, batch_size=size) for size in (1, 1000))
    assert one.searches == many.searches
    assert one.scores == many.scores


def test_segmenters_are_compared_although_their_searches_went_elsewhere(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    grown = GrownBox()
    grown.info = SegmenterInfo("grown-box", frozenset({"box", "points"}))
    runs = evaluate(
        ["ellipse", grown],
        small_dataset,
        "worst-box",
        results=tmp_path,
        keep_masks="worst",
        workers=0,
    )
    (section,) = summarise(runs)
    table = section.searches
    assert list(table["segmenter"]) == ["ellipse", "grown-box"]
    assert (table["worst"] <= table["exact"]).all()
    assert (table["exact"] <= table["best"]).all()
    scores = section.table.set_index(["segmenter", "condition"])
    for row in table.to_dict("records"):  # of the same bootstrap as all other intervals
        for name, condition in (("worst", "worst-box"), ("best", "best-box")):
            for end in ("", "_low", "_high"):
                score = scores.loc[(row["segmenter"], condition), f"miou{end}"]
                assert row[f"{name}{end}"] == pytest.approx(score)
    for run, name in zip(runs, table["segmenter"], strict=True):
        rows = read_searches(run.folder)
        mine = table[table["segmenter"] == name].iloc[0]
        assert mine["broken"] == pytest.approx(rows["breaks_at"].notna().mean())
        assert mine["breaks_at"] == pytest.approx(rows["breaks_at"].fillna(95).mean() / 100)
    _is_shown(section)
    boxes = read_masks(runs[1].folder)
    worst = boxes[boxes["condition"] == "worst-box"]
    assert all(len(box) == 4 for box in worst["box"])
    glance = section.glance.iloc[0]
    assert glance["n_conditions"] == 1
    assert glance["mean"] == pytest.approx(table["worst"].iloc[0])


def test_other_runs_have_no_searches(tmp_path: Path, small_dataset: MemoryDataset) -> None:
    runs = evaluate("ellipse", small_dataset, "human-box", results=tmp_path, trials=1, workers=0)
    (section,) = summarise(runs)
    assert section.searches.empty
    assert not [name for name in section.figures() if name.startswith("broken")]


def _is_shown(section: Section) -> None:
    titles = [table.title for table in terminal_tables([section])]
    assert any(title.endswith("worst plausible prompts") for title in titles)
    assert "broken" in section.figures()


def test_a_run_is_resumed_without_asking_again(
    tmp_path: Path, small_dataset: MemoryDataset
) -> None:
    first, again = GrownBox(), GrownBox()
    for segmenter in (first, again):
        evaluate(segmenter, small_dataset, "worst-point", results=tmp_path, self_test=False)
    assert sum(first.n_prompts) == 3 * 2 * (1 + 193)
    assert again.n_prompts == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('search = "worst-bx"', "unknown search 'worst-bx'. Did you mean 'worst-box'?"),
        ('search = "worst-box"\npercentile = 0', "percentile must be above 0 and at most 99"),
        ('search = "worst-box"\nrounds = 0', "rounds must be in [1, 1000], got 0"),
        (
            'search = "worst-box"\nparents = 1000\nchildren = 1000',
            "4000065 prompts an object, at most 20000 are allowed",
        ),
        ('search = "worst-box"\nshift = 1', "worst-box has no parameter 'shift'"),
        (
            'search = "worst-box"\ndegradation = "exact-box"',
            "has a degradation and a search; one is allowed",
        ),
    ],
)
def test_a_wrong_search_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "own.toml"
    head = (Path(__file__).parents[1] / "protocols" / "worst-box.toml").read_text().split("[[")[0]
    file.write_text(f'{head}[[conditions]]\nname = "own"\n{text}\n')
    with pytest.raises(Exception, match=r"own\.toml: condition 'own'") as caught:
        load_protocol(str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        ("prompts", "export", "--dataset", "scenes", "--limit", "1"),
        ("show", "--image", "photo.png", "--box", "3,3,20,20", "--segmenter", "ellipse"),
    ],
)
def test_what_has_no_segmenter_to_ask_refuses_a_search(
    shell: Shell, root: Path, command: tuple[str, ...]
) -> None:
    Path("photo.png").write_bytes((root / "images" / "p0.png").read_bytes())
    assert shell.refuses(*command, "--protocol", "worst-box") == (
        "protocol worst-box: condition 'worst-box' searches for its prompt by asking a segmenter; "
        "only samrobust eval can run it"
    )
