"""Masks at several thresholds of the logits, from one decoding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samrobust import evaluate, summarise
from samrobust.evaluation.loop import Evaluated, LoopOptions
from samrobust.evaluation.prompts import draw_prompts
from samrobust.metrics.overlap import iou
from samrobust.protocol import load_protocol, with_conditions, with_trials
from samrobust.segmenters.embedding_cache import EmbeddingCache, with_cache
from samrobust.segmenters.nano import build_sam_nano
from samrobust.segmenters.user_models import as_segmenter
from samrobust.types import Prediction, PromptBatch, SegmenterOptions, Selection
from tests.conftest import GrownBox, MemoryDataset, evaluate_one

PROTOCOL = with_conditions(
    with_trials(load_protocol("thresholds"), 3), ["exact-box", "box-noise-0.2"]
)
METRICS = {"iou-at-minus-1": -1.0, "iou": 0.0, "iou-at-plus-1": 1.0}


class Slope(GrownBox):
    """A segmenter whose logits fall from the middle of the box; of three candidates it may be."""

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        return self.predict_at(embedding, prompts, [0.0], multimask=multimask)[0]

    def predict_at(
        self,
        embedding: tuple[int, int],
        prompts: PromptBatch,
        thresholds: list[float],
        *,
        multimask: bool = False,
    ) -> list[Prediction]:
        self.n_prompts.append(len(prompts))
        assert prompts.boxes is not None
        x0, y0, x1, y1 = torch.from_numpy(prompts.boxes).T[:, :, None, None]
        y, x = torch.arange(embedding[0])[:, None], torch.arange(embedding[1])
        distance = abs(x - (x0 + x1) / 2) / (x1 - x0 + 2) + abs(y - (y0 + y1) / 2) / (y1 - y0 + 2)
        widths = torch.tensor([3.0, 2.0, 4.0] if multimask else [3.0])
        logits = widths[:, None, None] - 6 * distance[:, None]
        quality = widths.expand(len(prompts), -1) / 4
        return [Prediction(logits > threshold, quality) for threshold in thresholds]


@pytest.mark.parametrize("selection", ["single", "best-quality", "oracle"])
def test_scores_are_those_of_masks_at_each_threshold(
    small_dataset: MemoryDataset, selection: Selection
) -> None:
    segmenter, several = Slope(), selection != "single"
    protocol = replace(PROTOCOL, selection=selection)
    ids = small_dataset.ids()
    options = LoopOptions(batch_size=5)
    results = list(
        evaluate_one(segmenter, small_dataset, protocol, sample_ids=ids, options=options)
    )
    assert sum(segmenter.n_prompts) == 3 * 2 * 4  # images, objects, prompts: each decoded once
    images = [result for result in results if isinstance(result, Evaluated)]
    found = {
        (s.sample_id, s.instance_id, s.condition, s.trial, s.metric): s.value
        for image in images
        for s in image.scores
    }
    said = {
        (q.sample_id, q.instance_id, q.condition, q.trial): (q.quality, q.gap)
        for image in images
        for q in image.qualities
    }
    for sample_id in ids:
        sample = small_dataset[sample_id]
        (size,) = segmenter.encode([sample.image])
        for draws in draw_prompts(sample, "memory", protocol):
            target = torch.tensor(draws.instance.mask)
            at_each = dict(
                zip(
                    METRICS,
                    segmenter.predict_at(
                        size, draws.prompts, [*METRICS.values()], multimask=several
                    ),
                    strict=True,
                )
            )
            for trial in range(len(draws.prompts)):
                key = (sample_id, draws.instance.instance_id, draws.condition.name, trial)
                ious = iou(at_each["iou"].masks[trial], target)
                believed = int(at_each["iou"].quality[trial].argmax())
                chosen = int(ious.argmax()) if selection == "oracle" else believed
                gap = (ious.max() - ious[believed]).item() if several else None
                assert said[key] == (at_each["iou"].quality[trial, chosen].item(), gap)
                for metric, prediction in at_each.items():
                    mask = prediction.masks[trial, chosen : chosen + 1]
                    assert found[*key, metric] == iou(mask, target).item()


def test_a_segmenter_without_logits_has_no_scores_at_other_thresholds(
    small_dataset: MemoryDataset,
) -> None:
    results = evaluate_one(
        GrownBox(), small_dataset, PROTOCOL, sample_ids=["a"], options=LoopOptions()
    )
    (image,) = results
    assert isinstance(image, Evaluated)
    assert {score.metric for score in image.scores} == {"iou", "stability"}


def test_masks_of_sam_nano_shrink_with_the_threshold(tmp_path: Path) -> None:
    nano = build_sam_nano(SegmenterOptions())
    image = np.random.default_rng(0).integers(0, 256, (41, 67, 3), dtype=np.uint8)
    box = np.array([[5, 4, 40, 33]], np.float32)
    points = np.zeros((1, 0, 2), np.float32)
    prompts = PromptBatch(box, points, np.zeros((1, 0), np.int32))
    (embedding,) = nano.encode([image])
    cached = with_cache(nano, EmbeddingCache(tmp_path, 2**20))
    for segmenter in (nano, cached, as_segmenter(nano)):
        low, middle, high = segmenter.predict_at(  # type: ignore[union-attr]
            embedding, prompts, [-1.0, 0.0, 1.0], multimask=True
        )
        assert torch.equal(middle.masks, nano.predict(embedding, prompts, multimask=True).masks)
        assert (low.masks >= middle.masks).all()
        assert (middle.masks >= high.masks).all()
        assert (low.masks != high.masks).any()
        assert torch.equal(low.quality, high.quality)


def test_the_share_of_the_threshold_is_that_of_an_analysis_of_variance(tmp_path: Path) -> None:
    protocol = with_conditions(PROTOCOL, ["exact-box", "box-noise-0.2"])
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(3):
        masks = np.zeros((2, 40, 60), np.bool_)
        masks[0, 3:30, 2:25] = masks[1, 10:15, 30:55] = True
        pairs.append((rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), masks))
    (run,) = evaluate(Slope(), pairs, protocol, results=tmp_path)
    (section,) = summarise([run])
    rows = run.scores[run.scores["condition"] == "box-noise-0.2"]
    between, total = 0.0, 0.0
    for _, of_object in rows.groupby(["sample_id", "instance_id"], observed=True):
        x = of_object[of_object["trial"] >= 0].pivot_table(
            "value", "trial", "metric", observed=True
        )
        values = x.to_numpy(np.float64)
        assert values.shape == (3, 3)
        between += 3 * ((values.mean(axis=0) - values.mean()) ** 2).sum()
        total += ((values - values.mean()) ** 2).sum()
    table = section.table.set_index("condition")["threshold_share"]
    assert table["box-noise-0.2"] == pytest.approx(between / total, rel=1e-5)
    assert 0 < table["box-noise-0.2"] < 1
    assert np.isnan(table["exact-box"])  # one trial
    assert not any("squares" in name for name in section.differences["statistic"])
    plain = replace(protocol, metrics=("iou",))
    (other,) = summarise(evaluate("ellipse", pairs, plain, results=tmp_path / "other"))
    assert "threshold_share" not in other.table
