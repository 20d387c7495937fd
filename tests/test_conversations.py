"""Conversations with segmenters whose answers are known, beside a loop over single objects."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samrobust.degradations.clicks import Click
from samrobust.errors import ProtocolError, SegmenterError
from samrobust.evaluation.loop import Evaluated, Failure, LoopOptions, check_can_run
from samrobust.evaluation.prompts import drawn_rows
from samrobust.evaluation.runner import evaluate
from samrobust.protocol import describe_protocol, load_protocol, with_conditions, with_trials
from samrobust.runs.store import read_masks
from samrobust.seeding import keyed_generator
from samrobust.types import (
    EvalProtocol,
    Image,
    Instance,
    Mask,
    Prediction,
    PromptBatch,
    PromptKind,
    Sample,
    SegmenterInfo,
)
from tests.conftest import MemoryDataset, blobs, evaluate_one

HEAD = """name = "talk"
version = 1
summary = "a conversation"
source = "tests"
seed = 3
trials = 2
selection = "single"
metrics = ["iou"]
"""
CLICKS = """
[[conditions]]
name = "deepest"
interaction = { clicks = 5 }

[[conditions]]
name = "sampled"
interaction = { clicks = 4, policy = "sampled", gamma = 0.5, first = "best-quality" }
"""
BOX = """
[[conditions]]
name = "box"
degradation = "box-noise"
shift = 0.5
scale = 0.5
interaction = { clicks = 3 }
"""


def protocol_of(folder: Path, conditions: str) -> EvalProtocol:
    path = folder / "talk.toml"
    path.write_text(HEAD + conditions)
    return load_protocol(str(path))


class Squares:
    """Answers with squares about foreground points, less those about background points.

    The last click decides; a box is filled first. Of three candidates the sides differ, and it
    believes most in the second. It counts the prompts of each call.
    """

    def __init__(self, prompts: frozenset[PromptKind] = frozenset({"box", "points"})) -> None:
        self.info = SegmenterInfo("squares", prompts, multimask=True)
        self.calls: list[int] = []
        self.fed: list[PromptBatch] = []

    def encode(self, images: Sequence[Image]) -> list[tuple[int, int]]:
        return [(image.shape[0], image.shape[1]) for image in images]

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        self.calls.append(len(prompts))
        self.fed.append(prompts)
        halves = [3, 5, 7] if multimask else [4]
        masks = np.zeros((len(prompts), len(halves), *embedding), np.bool_)
        for n, prompt in enumerate(prompts.split()):
            for m, half in enumerate(halves):
                if prompt.box is not None:
                    x0, y0, x1, y1 = prompt.box.round().astype(int)
                    masks[n, m, y0 : y1 + 1, x0 : x1 + 1] = True
                for (x, y), label in zip(prompt.points.astype(int), prompt.labels, strict=True):
                    top, left = max(y - half, 0), max(x - half, 0)
                    masks[n, m, top : y + half + 1, left : x + half + 1] = bool(label)
        quality = torch.tensor([0.1, 0.9, 0.5][: len(halves)]).expand(len(prompts), -1)
        logits = torch.arange(len(prompts) * len(halves), dtype=torch.float32)
        logits = logits.view(len(prompts), len(halves), 1, 1) + 100 * len(self.calls)
        return Prediction(torch.from_numpy(masks), quality, logits.expand(-1, -1, 2, 3))


@pytest.fixture
def dataset() -> MemoryDataset:
    """Return two images of odd sizes with objects of blocks, one pixel, and void."""
    rng = np.random.default_rng(0)
    samples = []
    for name, size_hw in (("a", (41, 67)), ("b", (58, 33))):
        one_pixel = np.zeros(size_hw, np.bool_)
        one_pixel[size_hw[0] - 1, 3] = True
        instances = [
            Instance("1", blobs(rng, size_hw)),
            Instance("2", one_pixel),
            Instance("3", blobs(rng, size_hw)),
        ]
        void = ~np.logical_or.reduce([instance.mask for instance in instances])
        void[:, : size_hw[1] // 2] = False
        image = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        samples.append(Sample(name, image, instances, void))
    return MemoryDataset(samples)


def run(
    segmenter: Squares,
    dataset: MemoryDataset,
    protocol: EvalProtocol,
    options: LoopOptions = LoopOptions(),  # noqa: B008
) -> list[Evaluated | Failure]:
    ids = dataset.ids()
    return list(evaluate_one(segmenter, dataset, protocol, sample_ids=ids, options=options))


def values_of(found: Sequence[Evaluated | Failure]) -> dict[tuple[str, str, str, int], float]:
    return {
        (score.sample_id, score.instance_id, score.condition, score.trial): score.value
        for each in found
        if isinstance(each, Evaluated)
        for score in each.scores
    }


def iou_of(mask: Mask, target: Mask) -> float:
    return float((mask & target).sum() / (mask | target).sum())


def test_a_loop_over_single_objects_says_the_same(tmp_path: Path, dataset: MemoryDataset) -> None:
    protocol = protocol_of(tmp_path, CLICKS + BOX)
    found = values_of(run(Squares(), dataset, protocol, LoopOptions(batch_size=2)))
    segmenter = Squares()
    n_checked = 0
    for sample_id in dataset.ids():
        sample = dataset[sample_id]
        valid = ~sample.void if sample.void is not None else np.ones(sample.image.shape[:2], bool)
        (embedding,) = segmenter.encode([sample.image])
        for instance in sample.instances:
            key = 3, "memory", sample_id, instance.instance_id
            for name, policy, n_trials, n_clicks in (
                ("deepest", Click(), 1, 5),
                ("sampled", Click("sampled", 0.5), 2, 4),
            ):
                for trial in range(n_trials):
                    prompt = policy(instance.mask, keyed_generator(*key, "click", trial))
                    points, labels = prompt.points.tolist(), [1]
                    places = [int(points[0][1]) * instance.mask.shape[1] + int(points[0][0])]
                    answer: Mask = valid
                    for n in range(1, n_clicks + 1):
                        multimask = n == 1 and name == "sampled"
                        prompts = PromptBatch(
                            None, np.array([points], np.float32), np.array([labels], np.int32)
                        )
                        answer = (
                            segmenter.predict(embedding, prompts, multimask=multimask)
                            .masks[0, int(multimask)]
                            .numpy()
                            & valid
                        )
                        where = sample_id, instance.instance_id, f"{name}@{n}", trial
                        assert found[where] == pytest.approx(iou_of(answer, instance.mask))
                        n_checked += 1
                        rng = keyed_generator(*key, "click", trial, n + 1)
                        click = policy.correct(instance.mask, answer, places, rng)
                        if click is None:
                            wrong = np.flatnonzero(answer ^ instance.mask).tolist()
                            assert set(wrong) <= set(places)
                            for later in range(n + 1, n_clicks + 1):
                                stays = (*where[:2], f"{name}@{later}", trial)
                                assert found[stays] == found[where]
                            break
                        places.append(click[0])
                        y, x = divmod(click[0], instance.mask.shape[1])
                        points.append([x, y])
                        labels.append(click[1])
    assert n_checked > 60
    # every turn has a score, though a trial may have stopped before
    n_objects = 6
    assert len(found) == n_objects * (5 + 2 * 4 + 2 * 4)


def test_all_objects_of_an_image_are_asked_at_once(tmp_path: Path, dataset: MemoryDataset) -> None:
    segmenter = Squares()
    run(segmenter, dataset, protocol_of(tmp_path, CLICKS.partition("\n\n")[0]))
    assert len(segmenter.calls) <= 2 * 5
    assert segmenter.calls[0] == 3


def test_scores_do_not_depend_on_the_batch_or_on_what_else_is_asked(
    tmp_path: Path, dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = protocol_of(tmp_path, CLICKS + BOX)
    wanted = values_of(run(Squares(), dataset, protocol))
    alone = with_conditions(protocol, ["sampled"])
    assert values_of(run(Squares(), dataset, alone)).items() <= wanted.items()
    monkeypatch.setattr("samrobust.evaluation.conversations.MAX_ANSWER_BYTES", 1)
    assert values_of(run(Squares(), dataset, protocol, LoopOptions(batch_size=1))) == wanted


def test_a_box_comes_first_and_is_kept(tmp_path: Path, dataset: MemoryDataset) -> None:
    segmenter = Squares()
    protocol = protocol_of(tmp_path, BOX)
    assert [c.name for c in protocol.conditions] == ["box@0", "box@1", "box@2", "box@3"]
    assert [c.level for c in protocol.conditions] == [0, 1, 2, 3]
    run(segmenter, dataset, protocol)
    first, second = segmenter.fed[:2]
    assert first.boxes is not None
    assert second.boxes is not None
    assert first.points.shape[1] == 0
    assert second.points.shape[1] == 1
    assert {tuple(box) for box in second.boxes} <= {tuple(box) for box in first.boxes}


def test_logits_are_fed_back_to_those_that_take_them_alone(
    tmp_path: Path, dataset: MemoryDataset
) -> None:
    taker = Squares(frozenset({"box", "points", "mask"}))
    run(taker, dataset, protocol_of(tmp_path, CLICKS), LoopOptions(batch_size=1))
    assert taker.fed[0].logits is None
    later = [prompts for prompts in taker.fed if prompts.points.shape[1] > 1]
    for prompts in later:
        assert prompts.logits is not None
        assert prompts.logits.shape == (1, 2, 3)
    two = next(prompts for prompts in later if prompts.points.shape[1] == 2)
    assert two.logits is not None
    first = next(
        n for n, each in enumerate(taker.fed) if np.array_equal(each.points, two.points[:, :1])
    )
    assert two.logits[0, 0, 0] in {100 * (first + 1) + m for m in range(3)}
    for segmenter, conditions in (
        (Squares(), CLICKS),
        (taker, CLICKS.replace("clicks = 5", "clicks = 5, feedback = false").partition("\n\n")[0]),
    ):
        segmenter.fed.clear()
        run(segmenter, dataset, protocol_of(tmp_path, conditions))
        assert all(prompts.logits is None for prompts in segmenter.fed)


def test_stored_prompts_are_the_clicks_that_were_made(
    tmp_path: Path, dataset: MemoryDataset
) -> None:
    protocol = protocol_of(tmp_path, CLICKS.partition("\n\n")[0])
    (stored,) = evaluate(Squares(), dataset, protocol, results=tmp_path, keep_masks="all")
    masks = read_masks(stored.folder)
    for _, row in masks[masks["condition"] != ""].iterrows():
        n_clicks = int(row["condition"].partition("@")[2])
        assert len(row["points"]) == 2 * len(row["labels"])
        assert set(row["labels"]) <= {0, 1}
        assert len(row["labels"]) <= n_clicks
        if row["instance_id"] == "1":
            assert len(row["labels"]) == n_clicks


def test_after_a_kill_in_mid_conversation_the_rows_are_the_same(
    tmp_path: Path, dataset: MemoryDataset
) -> None:
    class Killed(Squares):
        def predict(
            self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
        ) -> Prediction:
            if len(self.calls) == 13:  # in the second image, after its first click
                raise KeyboardInterrupt
            return super().predict(embedding, prompts, multimask=multimask)

    protocol = protocol_of(tmp_path, CLICKS)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Killed(), dataset, protocol, results=tmp_path / "killed")
    (resumed,) = evaluate(Squares(), dataset, protocol, results=tmp_path / "killed")
    (whole,) = evaluate(Squares(), dataset, protocol, results=tmp_path / "whole")
    assert resumed.folder.name == whole.folder.name
    rows = [sorted(map(tuple, each.scores.to_numpy().tolist())) for each in (resumed, whole)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6 * (5 + 2 * 4)


def test_a_protocol_says_all_of_a_conversation(tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, CLICKS + BOX)
    rows = {row["name"]: row for row in describe_protocol(protocol)["conditions"]}
    assert rows["sampled@2"]["turn"] == {
        "conversation": "sampled",
        "n_clicks": 2,
        "is_first": False,
        "interaction": {
            "policy": "sampled",
            "gamma": 0.5,
            "group": 0,
            "clicks": 4,
            "feedback": True,
            "first": "best-quality",
        },
    }
    assert rows["deepest@1"]["trials"] == 1
    assert rows["sampled@1"]["trials"] == 2
    assert {c.trials for c in with_trials(protocol, 7).conditions} == {1, 7}
    assert "turn" not in describe_protocol(load_protocol("points"))["conditions"][0]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("interaction = { clicks = 21 }", "clicks must be a whole number from 1 to 20, got 21"),
        ("interaction = { clicks = 0 }", "clicks must be a whole number from 1 to 20, got 0"),
        ("interaction = { clikcs = 2 }", "no parameter 'clikcs'. Did you mean 'clicks'?"),
        ('interaction = { policy = "deep" }', "unknown value 'deep'"),
        ('interaction = { policy = "groups" }', "needs a group from 1 to 10, got 0"),
        ("interaction = 3", "interaction must be a table"),
        ("interaction = {}\nlevel = 2", "the level of an interaction is its number of clicks"),
        (
            'interaction = {}\ndegradation = "random-points"\ncount = 3',
            "starts with a box, or without a degradation with a click, got 'random-points'",
        ),
        ("clicks = 3", "Object missing required field"),
    ],
)
def test_interactions_that_cannot_be_are_refused_in_one_line(
    tmp_path: Path, conditions: str, message: str
) -> None:
    with pytest.raises(ProtocolError) as refused:
        protocol_of(tmp_path, f'[[conditions]]\nname = "talk"\n{conditions}\n')
    text = str(refused.value)
    assert message in text or message.startswith("Object")
    assert text.startswith("talk.toml: ")
    assert "'talk'" in text
    assert "\n" not in text


def test_segmenters_without_points_are_refused(tmp_path: Path) -> None:
    boxes = Squares(frozenset({"box"}))
    with pytest.raises(SegmenterError, match="'box@0' gives points, segmenter squares accepts box"):
        check_can_run(boxes, protocol_of(tmp_path, BOX))


def test_clicks_are_not_written_as_prompts(tmp_path: Path, dataset: MemoryDataset) -> None:
    protocol = protocol_of(tmp_path, CLICKS)
    with pytest.raises(ProtocolError, match="has clicks that depend on a segmenter's"):
        list(drawn_rows(dataset, replace(protocol), dataset.ids()))
