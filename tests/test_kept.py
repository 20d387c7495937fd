import io

import numpy as np
from PIL import Image

from samrobust.datasets.coco import decode_run_lengths
from samrobust.evaluation.loop import Evaluated, LoopOptions
from samrobust.evaluation.prompts import draw_prompts
from samrobust.protocol import load_protocol, with_conditions, with_trials
from samrobust.runs.manifest import Kept
from samrobust.types import EvalProtocol, Instance, Keep, Sample
from tests.conftest import GrownBox, MemoryDataset, evaluate_one, rectangle

PROTOCOL = with_trials(
    with_conditions(load_protocol("noisy-box"), ["exact-box", "box-noise-0.4"]), 6
)


def evaluated(
    dataset: MemoryDataset, keep: Keep, protocol: EvalProtocol = PROTOCOL
) -> dict[str, Evaluated]:
    options = LoopOptions(keep_masks=keep)
    results = evaluate_one(GrownBox(), dataset, protocol, sample_ids=dataset.ids(), options=options)
    return {each.sample_id: each for each in results if isinstance(each, Evaluated)}


def kept_of(result: Evaluated) -> Kept:
    assert result.kept is not None
    return result.kept


def test_none_are_kept_unless_asked(small_dataset: MemoryDataset) -> None:
    assert all(result.kept is None for result in evaluated(small_dataset, "none").values())


def test_keeping_masks_changes_no_score(small_dataset: MemoryDataset) -> None:
    scores = [
        [result.scores for result in evaluated(small_dataset, keep).values()]
        for keep in ("none", "worst", "all")
    ]
    assert scores[0] == scores[1] == scores[2]


def test_all_masks_are_those_of_the_segmenter(small_dataset: MemoryDataset) -> None:
    kept = kept_of(evaluated(small_dataset, "all")["a"])
    sample = small_dataset["a"]
    size_hw = sample.image.shape[:2]
    assert (kept.photograph.height, kept.photograph.width) == size_hw
    rows = {(row.instance_id, row.condition, row.trial): row for row in kept.masks}
    assert len(rows) == 2 * (1 + 1 + 6)
    for instance in sample.instances:
        target = rows[instance.instance_id, "", -1]
        np.testing.assert_array_equal(decode_run_lengths(target.counts, size_hw), instance.mask)
    for draws in draw_prompts(sample, "memory", PROTOCOL):
        masks = GrownBox().predict(size_hw, draws.prompts).masks[:, 0].numpy()
        assert draws.prompts.boxes is not None
        for trial, (mask, box) in enumerate(zip(masks, draws.prompts.boxes, strict=True)):
            row = rows[draws.instance.instance_id, draws.condition.name, trial]
            np.testing.assert_array_equal(decode_run_lengths(row.counts, size_hw), mask)
            assert row.box == box.tolist()
            assert not row.points


def test_the_worst_are_the_largest_drop_and_the_largest_object(
    small_dataset: MemoryDataset,
) -> None:
    sample = small_dataset["b"]
    third = Instance("3", rectangle((90, 33), (3, 40, 12, 52)))
    dataset = MemoryDataset([Sample("b", sample.image, [*sample.instances, third])])
    result = evaluated(dataset, "worst")["b"]
    ious: dict[tuple[str, str], list[float]] = {}
    for score in result.scores:
        if score.metric == "iou":
            ious.setdefault((score.condition, score.instance_id), []).append(score.value)
    drops = {name: 1 - min(ious["box-noise-0.4", name]) for name in "123"}
    worst = max(drops, key=drops.__getitem__)
    rows = [row for row in kept_of(result).masks if row.condition == "box-noise-0.4"]
    kept = {(row.instance_id, row.trial) for row in rows}
    assert {name for name, _ in kept} == {worst, "1"}  # the first object is the largest
    lowest = int(np.argmin(ious["box-noise-0.4", worst]))
    assert {trial for name, trial in kept if name == worst} == {0, 1, 2, lowest}


def test_points_are_kept_with_their_labels(small_dataset: MemoryDataset) -> None:
    protocol = with_trials(with_conditions(load_protocol("points"), ["points-3"]), 2)
    rows = kept_of(evaluated(small_dataset, "all", protocol)["c"]).masks
    assert {(len(row.points), len(row.labels)) for row in rows if row.condition} == {(6, 3)}


def test_photographs_are_reduced_and_keep_their_shape() -> None:
    image = np.zeros((1500, 900, 3), np.uint8)
    image[:, :450] = 200
    mask = rectangle((1500, 900), (5, 5, 800, 1400))
    dataset = MemoryDataset([Sample("large", image, [Instance("1", mask)])])
    protocol = with_conditions(load_protocol("noisy-box"), ["exact-box"])
    photograph = kept_of(evaluated(dataset, "worst", protocol)["large"]).photograph
    with Image.open(io.BytesIO(photograph.jpeg)) as picture:
        assert picture.size == (614, 1024)
        pixels = np.asarray(picture)
    assert abs(int(pixels[500, 100, 0]) - 200) < 8
    assert pixels[500, 500, 0] < 8
    assert (photograph.height, photograph.width, photograph.kept) == (1500, 900, "worst")
