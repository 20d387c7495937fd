"""What several test files need: real photographs where they are, fakes that obey the interfaces."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

os.environ.pop("COLUMNS", None)  # a terminal that is imported where it is set keeps that width

import samrobust.cli.terminal  # noqa: F401
from samrobust.cli import main
from samrobust.evaluation.loop import Evaluated, Failure, Job, LoopOptions, score_images
from samrobust.files import CACHE_VARIABLE
from samrobust.training.data import open_data
from samrobust.training.recipe import load_recipe
from samrobust.types import (
    Dataset,
    DatasetInfo,
    EvalProtocol,
    Image,
    Instance,
    Mask,
    Prediction,
    PromptBatch,
    Sample,
    Segmenter,
    SegmenterInfo,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is fetched or encoded out of the user's cache, and what lies there out of tests."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Return the folder of real photographs with masks, or skip."""
    if not SHARED.is_dir():
        pytest.skip("needs the photographs of ../shared/data, which are not there")
    return SHARED


def held_out_ids(photographs: Path, folder: str) -> list[str]:
    """Return the photographs of a folder that the packaged weights were not trained on."""
    found = open_data(load_recipe("sam-nano", "photographs"), photographs).held_out
    (ids,) = (each.sample_ids for each in found if each.dataset.info.folder == folder)
    return list(ids)


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


def evaluate_one(
    segmenter: Segmenter[Any],
    dataset: Dataset,
    protocol: EvalProtocol,
    *,
    sample_ids: Sequence[str],
    options: LoopOptions,
) -> Iterator[Evaluated | Failure]:
    """Yield the scores of some images by one segmenter under one protocol."""
    jobs = [Job(segmenter, protocol, sample_ids)]
    return (result for _, result in score_images(dataset, jobs, options))


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


class Doubtful(GrownBox):
    """Gives a quality that is no number to a single prompt of the second image."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        found = super().predict(embedding, prompts, multimask=multimask)
        quality = found.quality.clone()
        if self.n_encoded == 2 and prompts.boxes is not None:
            quality[-1, 0] = self._value
        return Prediction(found.masks, quality)


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


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Shell:
    """Run command lines in this process, in a folder of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str | Path) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["samrobust", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        text = self._capsys.readouterr()
        return Result(code, text.out, text.err)

    def refuses(self, *arguments: str | Path) -> str:
        """Return the one line that a command line is refused with."""
        result = self(*arguments)
        assert result.code == 1
        assert "Traceback" not in result.err
        lines = [line for line in result.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        assert result.err.splitlines()[-1] == lines[0]
        return lines[0].removeprefix("error: ")


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    """Return a shell; what training switches on for its process is switched off again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    yield Shell(monkeypatch, capsys)
    torch.set_flush_denormal(False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of four pairs of odd sizes."""
    rng = np.random.default_rng(0)
    for number in range(4):
        size_hw = (41 + number, 63)
        for kind, values in (
            ("images", rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)),
            ("masks", rectangle(size_hw, (9, 8, 40, 33)).astype(np.uint8) * 255),
        ):
            (tmp_path / "own" / kind).mkdir(parents=True, exist_ok=True)
            PillowImage.fromarray(values).save(tmp_path / "own" / kind / f"p{number}.png")
    return tmp_path / "own"
