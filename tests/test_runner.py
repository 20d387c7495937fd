"""`samrobust.evaluate` and the pass that all runs on a data set share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

import samrobust
from samrobust.datasets.pairs import PairsDataset
from samrobust.errors import DatasetError, SegmenterError
from samrobust.evaluation.loop import LoopOptions
from samrobust.evaluation.runner import Progress, RunSettings, run_all
from samrobust.protocol import load_protocol, with_trials
from samrobust.types import Image, Prediction, PromptBatch, Sample
from tests.conftest import GrownBox, MemoryDataset, rectangle


class CountingDataset(MemoryDataset):
    """Counts how often each image is decoded."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__(samples)
        self.decoded: list[str] = []

    def __getitem__(self, sample_id: str) -> Sample:
        self.decoded.append(sample_id)
        return super().__getitem__(sample_id)


class SharedEncoder(GrownBox):
    """Says which encoder it has."""

    def __init__(self, name: str, encoder_key: str) -> None:
        super().__init__()
        self.info = samrobust.types.SegmenterInfo(name, frozenset({"box", "points"}))
        self.encoder_key = encoder_key


class FilledBoxes(torch.nn.Module):
    """A model of a user's, without an `info`."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(bias))

    def encode(self, images: Sequence[Image]) -> list[tuple[int, ...]]:
        return [image.shape[:2] for image in images]

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        del multimask
        masks = torch.zeros(len(prompts), 1, *embedding, dtype=torch.bool)
        assert prompts.boxes is not None
        for mask, (x0, y0, x1, y1) in zip(masks, prompts.boxes.round().astype(int), strict=True):
            mask[0, y0 : y1 + 1, x0 : x1 + 1] = True
        return Prediction(masks, torch.zeros(len(prompts), 1))


PAIRS = [
    (np.zeros((24, 37, 3), np.uint8), np.stack([rectangle((24, 37), (3, 2, 30, 20))])),
    (
        np.ones((31, 19, 3), np.uint8),
        np.stack([rectangle((31, 19), (0, 0, 9, 9)), rectangle((31, 19), (18, 30, 18, 30))]),
    ),
]


def test_an_image_is_decoded_and_encoded_once_for_all_runs(
    small_dataset: MemoryDataset, tmp_path: Path
) -> None:
    dataset = CountingDataset([small_dataset[name] for name in small_dataset.ids()])
    one, two = SharedEncoder("one", "encoder"), SharedEncoder("two", "encoder")
    other = SharedEncoder("other", "")
    protocols = [with_trials(load_protocol(name), 2) for name in ("noisy-box", "points")]
    folders = run_all(
        protocols, [dataset], [one, two, other], RunSettings(tmp_path, self_test=False)
    )
    assert len(folders) == 6
    assert dataset.decoded == dataset.ids()
    assert one.n_encoded + two.n_encoded == other.n_encoded == len(dataset.ids())
    alone = run_all(protocols[1:], [small_dataset], [GrownBox()], RunSettings(tmp_path / "alone"))
    together, apart = (samrobust.read_run(folder).scores for folder in (folders[-1], alone[0]))
    key = ["sample_id", "instance_id", "condition", "trial", "metric"]
    values = [x.sort_values(key)["prompt_hash"].tolist() for x in (together, apart)]
    assert values[0] == values[1]


def test_only_what_is_missing_is_read_again(small_dataset: MemoryDataset, tmp_path: Path) -> None:
    dataset = CountingDataset([small_dataset[name] for name in small_dataset.ids()])
    protocols = [with_trials(load_protocol(name), 2) for name in ("noisy-box", "points")]
    settings = RunSettings(tmp_path, self_test=False)
    run_all(protocols[:1], [dataset], [GrownBox()], settings)
    segmenter = GrownBox()
    run_all(protocols, [dataset], [segmenter], settings)
    assert len(dataset.decoded) == 2 * len(dataset.ids())
    assert segmenter.n_encoded == len(dataset.ids())
    run_all(protocols, [dataset], [GrownBox()], RunSettings(tmp_path))
    assert len(dataset.decoded) == 2 * len(dataset.ids())


def test_a_pair_that_does_not_fit_is_left_out_and_alone_it_is_refused(
    small_dataset: MemoryDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = SharedEncoder("boxes", "")
    boxes.info = samrobust.types.SegmenterInfo("boxes", frozenset({"box"}))
    points = with_trials(load_protocol("points"), 2)
    folders = run_all([points], [small_dataset], [boxes, GrownBox()], RunSettings(tmp_path))
    assert len(folders) == 1
    assert "left out: protocol points: condition" in caplog.text
    with pytest.raises(SegmenterError, match="segmenter boxes accepts box"):
        run_all([points], [small_dataset], [boxes], RunSettings(tmp_path))


def test_an_own_model_is_evaluated_on_pairs_and_resumed(tmp_path: Path) -> None:
    seen: list[Progress] = []
    (run,) = samrobust.evaluate(
        FilledBoxes(), PAIRS, "gt-box", results=tmp_path, progress=seen.append
    )
    iou = run.scores[run.scores["metric"] == "iou"]
    assert iou["value"].tolist() == [1.0, 1.0, 1.0]
    assert [(each.done, each.total) for each in seen] == [(1, 2), (2, 2)]
    assert run.manifest.segmenter.name == "filled-boxes"
    seen.clear()
    (again,) = samrobust.evaluate(
        FilledBoxes(), PAIRS, "gt-box", results=tmp_path, progress=seen.append
    )
    assert not seen
    assert again.folder == run.folder
    pd.testing.assert_frame_equal(again.scores, run.scores)


def test_other_weights_or_other_pixels_are_another_run(tmp_path: Path) -> None:
    brighter = [(image + 1, masks) for image, masks in PAIRS]
    runs = [
        *samrobust.evaluate(FilledBoxes(), PAIRS, "gt-box", results=tmp_path),
        *samrobust.evaluate(FilledBoxes(bias=1.0), PAIRS, "gt-box", results=tmp_path),
        *samrobust.evaluate(FilledBoxes(), brighter, "gt-box", results=tmp_path),
    ]
    assert len({run.folder for run in runs}) == 3


def test_a_torch_dataset_of_pairs_is_a_data_set(tmp_path: Path) -> None:
    class Own(torch.utils.data.Dataset[tuple[Image, npt.NDArray[np.bool_]]]):
        def __len__(self) -> int:
            return len(PAIRS)

        def __getitem__(self, index: int) -> tuple[Image, npt.NDArray[np.bool_]]:
            return PAIRS[index]

    (run,) = samrobust.evaluate("ellipse", Own(), "noisy-box", trials=2, results=tmp_path)
    assert run.scores["sample_id"].nunique() == 2
    (same,) = samrobust.evaluate("ellipse", PAIRS, "noisy-box", trials=2, results=tmp_path)
    assert same.folder == run.folder


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "pairs: has no pair"),
        ([(np.zeros((4, 4)), PAIRS[0][1])], r"pair 0: image must be uint8 of shape \(\*, \*, 3\)"),
        ([(PAIRS[0][0], PAIRS[1][1])], r"pair 0: mask must be bool of shape \(24, 37\), got"),
        ([(PAIRS[0][0], np.zeros((1, 24, 37), np.bool_))], "pair 0: mask of instance '0' is empty"),
        ([(PAIRS[0][0], np.zeros((0, 24, 37), np.bool_))], "pair 0: sample '0' has no instances"),
    ],
)
def test_what_is_no_pair_is_refused(pairs: list[tuple[Image, Image]], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        PairsDataset(pairs)


def test_what_is_no_segmenter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SegmenterError, match="object has no method 'encode'"):
        samrobust.evaluate(object(), PAIRS, results=tmp_path)


def test_the_interface_is_light_and_complete() -> None:
    assert all(callable(getattr(samrobust, name)) for name in samrobust.__all__ if name[0] != "_")
    with pytest.raises(AttributeError, match="module 'samrobust' has no attribute 'evalute'"):
        _ = samrobust.evalute
    assert LoopOptions().batch_size == 16
