import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import samrobust.evaluation.loop
from samrobust.errors import DatasetError, ProtocolError, SamrobustError, SegmenterError
from samrobust.evaluation.loop import (
    Evaluated,
    Failure,
    LoopOptions,
    check_can_run,
)
from samrobust.evaluation.prompts import draw_prompts
from samrobust.metrics import METRICS
from samrobust.metrics.overlap import boundary_iou, iou, stability_factor
from samrobust.protocol import load_protocol, with_trials
from samrobust.runs.manifest import Score
from samrobust.segmenters.baselines import build_box_fill
from samrobust.types import (
    EvalProtocol,
    Image,
    Mask,
    Metric,
    Prediction,
    Prompt,
    PromptBatch,
    PromptKind,
    Sample,
    SegmenterOptions,
    Selection,
)
from tests.conftest import GrownBox, MemoryDataset, evaluate_one

PROTOCOL = with_trials(load_protocol("stable-sam-table"), 3)


def _run(
    dataset: MemoryDataset,
    segmenter: GrownBox,
    protocol: EvalProtocol = PROTOCOL,
    options: LoopOptions = LoopOptions(),  # noqa: B008
) -> list[Evaluated | Failure]:
    ids = dataset.ids()
    return list(evaluate_one(segmenter, dataset, protocol, sample_ids=ids, options=options))


def _scores(results: Sequence[Evaluated | Failure]) -> list[Score]:
    return [score for result in results if isinstance(result, Evaluated) for score in result.scores]


def test_the_loop_scores_what_a_plain_loop_scores(small_dataset: MemoryDataset) -> None:
    segmenter = GrownBox()
    found = {
        (s.sample_id, s.instance_id, s.condition, s.trial, s.metric): s.value
        for s in _scores(_run(small_dataset, segmenter))
    }
    n_rows = 0
    for sample_id in small_dataset.ids():
        sample = small_dataset[sample_id]
        for draws in draw_prompts(sample, "memory", PROTOCOL):
            target = torch.tensor(draws.instance.mask)
            (size,) = segmenter.encode([sample.image])
            masks = segmenter.predict(size, draws.prompts).masks[:, 0]
            key = (sample_id, draws.instance.instance_id, draws.condition.name)
            for trial in range(len(masks)):
                one = masks[trial : trial + 1]
                assert found[*key, trial, "iou"] == iou(one, target).item()
                assert found[*key, trial, "boundary-iou"] == boundary_iou(one, target).item()
                n_rows += 2
            if len(masks) > 1:
                assert found[*key, -1, "stability"] == stability_factor(masks, target).item()
                n_rows += 1
            else:
                assert (*key, -1, "stability") not in found
    assert n_rows == len(found)


@pytest.mark.parametrize("at_once", [1, 2, 7, 1000])
def test_neither_batches_nor_workers_nor_order_change_a_row(
    small_dataset: MemoryDataset, at_once: int
) -> None:
    expected = _scores(_run(small_dataset, GrownBox()))
    segmenter = GrownBox()
    options = LoopOptions(at_once, workers=2 if at_once == 7 else 0)
    backwards = MemoryDataset(
        [small_dataset[sample_id] for sample_id in reversed(small_dataset.ids())]
    )
    found = _scores(_run(backwards, segmenter, options=options))
    assert sorted(map(repr, found)) == sorted(map(repr, expected))
    assert max(segmenter.n_prompts) <= at_once


def test_each_image_is_encoded_once_and_prompts_are_joined(small_dataset: MemoryDataset) -> None:
    segmenter = GrownBox()
    _run(small_dataset, segmenter, options=LoopOptions(batch_size=100))
    assert segmenter.n_encoded == 3
    # boxes of both instances together, then 1, 3 and 10 points: four calls an image
    assert segmenter.n_prompts == [8, 6, 6, 6] * 3


class Together(GrownBox):
    """A segmenter that says how many images came at once, and takes no more than `most`."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.n_images: list[int] = []

    def encode(self, images: Sequence[Image]) -> list[tuple[int, int]]:
        self.n_images.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        return super().encode(images)


@pytest.mark.parametrize(("most", "calls"), [(2, [2, 1]), (1, [2, 1, 1, 1])])
def test_images_are_encoded_together_or_where_memory_ends_alone(
    small_dataset: MemoryDataset, most: int, calls: list[int]
) -> None:
    segmenter = Together(most)
    found = _run(small_dataset, segmenter, options=LoopOptions(image_batch_size=2))
    assert found == _run(small_dataset, GrownBox())
    assert segmenter.n_images == calls


def test_huge_images_are_predicted_in_small_calls(
    small_dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _scores(_run(small_dataset, GrownBox()))
    monkeypatch.setattr(samrobust.evaluation.loop, "MAX_MASK_BYTES", 2 * 90 * 33)
    segmenter = GrownBox()
    assert _scores(_run(small_dataset, segmenter)) == expected
    assert max(segmenter.n_prompts) <= 2


@pytest.mark.parametrize(
    ("selection", "grown"), [("single", 0), ("best-quality", 2), ("oracle", 0)]
)
def test_the_selected_candidate_counts(
    small_dataset: MemoryDataset, selection: Selection, grown: int
) -> None:
    protocol = replace(load_protocol("gt-box"), selection=selection)
    for score in _scores(_run(small_dataset, GrownBox(), protocol)):
        sample = small_dataset[score.sample_id]
        mask = {i.instance_id: i.mask for i in sample.instances}[score.instance_id]
        prompts = draw_prompts(sample, "memory", protocol)[int(score.instance_id) - 1].prompts
        candidates = GrownBox().predict(sample.image.shape[:2], prompts, multimask=True).masks[0]
        expected = iou(candidates, torch.tensor(mask))[grown].item()
        if score.metric == "iou":
            assert score.value == expected


def test_a_single_candidate_is_scored_under_every_selection(small_dataset: MemoryDataset) -> None:
    protocol = replace(load_protocol("gt-box"), selection="oracle")
    segmenter = build_box_fill(SegmenterOptions())
    ids = small_dataset.ids()
    results = evaluate_one(
        segmenter, small_dataset, protocol, sample_ids=ids, options=LoopOptions()
    )
    assert {s.value for s in _scores(list(results)) if s.metric == "iou"} == {1.0}


def test_prompts_are_paired_over_a_ladder_and_nested_in_points(
    small_dataset: MemoryDataset,
) -> None:
    draws = draw_prompts(small_dataset["a"], "memory", load_protocol("points"))
    ladder = [draw.prompts.points for draw in draws if draw.instance.instance_id == "1"]
    for k, points in enumerate(ladder, start=1):
        assert np.array_equal(points, ladder[-1][:, :k])
    other = draw_prompts(small_dataset["a"], "another data set", load_protocol("points"))
    assert not np.array_equal(other[0].prompts.points, draws[0].prompts.points)


class _Broken(MemoryDataset):
    def __getitem__(self, sample_id: str) -> Sample:
        if sample_id == "b":
            raise DatasetError("b.jpg: cannot be decoded")
        return super().__getitem__(sample_id)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_run_or_is_recorded(
    small_dataset: MemoryDataset, workers: int
) -> None:
    broken = _Broken([small_dataset[sample_id] for sample_id in small_dataset.ids()])
    with pytest.raises(DatasetError, match=r"^b\.jpg: cannot be decoded$"):
        _run(broken, GrownBox(), options=LoopOptions(workers=workers))
    results = _run(broken, GrownBox(), options=LoopOptions(workers=workers, keep_going=True))
    assert results[1] == Failure("b", "b.jpg: cannot be decoded")
    assert [result.sample_id for result in results] == ["a", "b", "c"]


def test_a_broken_image_among_others_is_recorded_in_its_place(
    small_dataset: MemoryDataset,
) -> None:
    broken = _Broken([small_dataset[sample_id] for sample_id in small_dataset.ids()])
    segmenter = Together(most=3)
    found = _run(broken, segmenter, options=LoopOptions(image_batch_size=3, keep_going=True))
    assert found == _run(broken, GrownBox(), options=LoopOptions(keep_going=True))
    assert segmenter.n_images == [2]


def test_a_prompt_that_cannot_be_drawn_names_where(small_dataset: MemoryDataset) -> None:
    protocol = load_protocol("gt-box")
    condition = replace(protocol.conditions[0], degradation=_Refusing())
    with pytest.raises(
        DatasetError, match="sample 'a', instance '1', condition 'exact-box': no prompt here"
    ):
        _run(small_dataset, GrownBox(), replace(protocol, conditions=(condition,)))


class _Refusing:
    family: ClassVar[str] = "refusing"
    gives: ClassVar[frozenset[PromptKind]] = frozenset({"box"})
    is_random: ClassVar[bool] = False

    def __call__(self, mask: Mask, rng: np.random.Generator) -> Prompt:  # noqa: ARG002
        raise DatasetError("no prompt here")


def test_prompts_that_a_segmenter_does_not_take_are_refused_by_name() -> None:
    segmenter = build_box_fill(SegmenterOptions())
    check_can_run(segmenter, load_protocol("noisy-box"))
    with pytest.raises(
        SegmenterError,
        match="protocol points: condition 'points-1' gives points, segmenter box-fill accepts box",
    ):
        check_can_run(segmenter, load_protocol("points"))


def test_gradients_are_off_in_the_loop(small_dataset: MemoryDataset) -> None:
    class Watching(GrownBox):
        def predict(
            self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
        ) -> Prediction:
            assert torch.is_inference_mode_enabled()
            return super().predict(embedding, prompts, multimask=multimask)

    assert _run(small_dataset, Watching())


class SlowDataset(MemoryDataset):
    """A data set that takes a while to load each image."""

    seconds: ClassVar[float] = 0.2

    def __getitem__(self, sample_id: str) -> Sample:
        time.sleep(self.seconds)
        return super().__getitem__(sample_id)


def test_waiting_for_an_image_is_not_busy(small_dataset: MemoryDataset) -> None:
    slow = SlowDataset([small_dataset[sample_id] for sample_id in small_dataset.ids()])
    started = time.perf_counter()
    results = _run(slow, GrownBox())
    elapsed = time.perf_counter() - started
    busy = [result.busy_s for result in results if isinstance(result, Evaluated)]
    assert all(seconds > 0 for seconds in busy)
    assert sum(busy) <= elapsed - 3 * SlowDataset.seconds


def test_a_metric_of_another_name_or_shape_is_refused(
    small_dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_number(masks: Tensor, target: Tensor) -> Tensor:
        return (masks & target).double().mean()

    metric = Metric("other", one_number)
    monkeypatch.setattr(METRICS, "load", lambda _name: metric)
    with pytest.raises(SamrobustError, match="metric 'iou' calls itself 'other'"):
        _run(small_dataset, GrownBox())
    monkeypatch.setattr(METRICS, "load", lambda name: replace(metric, name=name))
    with pytest.raises(ProtocolError, match=r"metric 'iou' gave values of shape \(\), not \(1,\)"):
        _run(small_dataset, GrownBox())


@pytest.mark.parametrize("kind", ["float32", "int64", "bool", "numpy"])
def test_a_metric_may_give_values_of_any_type(
    small_dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def number(masks: Tensor, target: Tensor) -> Any:  # noqa: ANN401
        shares = (masks & target).double().mean(dim=(1, 2)) + 0.7
        return shares.numpy() if kind == "numpy" else shares.to(getattr(torch, kind))

    monkeypatch.setattr(METRICS, "load", lambda name: Metric(name, number))
    values = {score.value for score in _scores(_run(small_dataset, GrownBox()))}
    assert all(type(value) is float for value in values)
    if kind == "float32":
        assert all(value == np.float32(value) for value in values)
    if kind in ("int64", "bool"):
        assert values <= {0.0, 1.0}
    assert values
