"""What several test files need: real photographs where they are, fakes that obey the interfaces."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from samrobust.types import (
    DatasetInfo,
    Image,
    Instance,
    Mask,
    Prediction,
    PromptBatch,
    Sample,
    SegmenterInfo,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Return the folder of real photographs with masks, or skip."""
    if not SHARED.is_dir():
        pytest.skip("needs the photographs of ../shared/data, which are not there")
    return SHARED


def rectangle(size_hw: tuple[int, int], box: tuple[int, int, int, int]) -> Mask:
    """Return a mask that is one filled box, xyxy inclusive."""
    mask = np.zeros(size_hw, np.bool_)
    mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    return mask


def blobs(rng: np.random.Generator, size_hw: tuple[int, int]) -> Mask:
    """Return a mask of random coarse blocks, about half of the image; may touch the border."""
    height, width = size_hw
    coarse = rng.random((height // 7 + 1, width // 7 + 1)) > 0.5
    return coarse.repeat(7, axis=0).repeat(7, axis=1)[:height, :width]


class MemoryDataset:
    """Samples kept in memory, with what is wrong with some of them."""

    def __init__(self, samples: Sequence[Sample], name: str = "memory") -> None:
        self.info = DatasetInfo(name, "", "fingerprint")
        self._samples = {sample.sample_id: sample for sample in samples}

    def ids(self) -> list[str]:
        return list(self._samples)

    def __getitem__(self, sample_id: str) -> Sample:
        return self._samples[sample_id]


class GrownBox:
    """A segmenter of three candidates: the box, and the box grown by 2 and 4 pixels.

    It counts its calls, and believes most in the largest.
    """

    def __init__(self) -> None:
        self.info = SegmenterInfo("grown-box", frozenset({"box", "points"}), multimask=True)
        self.n_encoded = 0
        self.n_prompts: list[int] = []

    def encode(self, images: Sequence[Image]) -> list[tuple[int, int]]:
        self.n_encoded += len(images)
        return [(image.shape[0], image.shape[1]) for image in images]

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        self.n_prompts.append(len(prompts))
        if prompts.boxes is None:
            boxes = np.concatenate([prompts.points.min(1), prompts.points.max(1)], axis=1)
        else:
            boxes = prompts.boxes
        grown = [0, 2, 4] if multimask else [0]
        masks = np.zeros((len(prompts), len(grown), *embedding), np.bool_)
        for n, (x0, y0, x1, y1) in enumerate(boxes.round().astype(int)):
            for m, by in enumerate(grown):
                masks[n, m, max(y0 - by, 0) : y1 + by + 1, max(x0 - by, 0) : x1 + by + 1] = True
        quality = torch.tensor(grown, dtype=torch.float32).expand(len(prompts), -1)
        return Prediction(torch.from_numpy(masks), quality)


@pytest.fixture
def small_dataset() -> MemoryDataset:
    """Return three images of different odd sizes, one with an object of one pixel."""
    rng = np.random.default_rng(0)
    samples = []
    for name, size_hw in (("a", (41, 67)), ("b", (90, 33)), ("c", (57, 57))):
        image = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        instances = [
            Instance("1", rectangle(size_hw, (0, 5, 20, 30))),
            Instance("2", rectangle(size_hw, (25, 11, 25, 11))),
        ]
        samples.append(Sample(name, image, instances))
    return MemoryDataset(samples)
