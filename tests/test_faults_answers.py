"""Photographs, answers, memory, parts and clocks that go wrong in the middle of an evaluation."""

import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import samrobust.runs.store
from samrobust.datasets import DATASETS
from samrobust.errors import DatasetError, SegmenterError
from samrobust.evaluation.loop import Evaluated, Failure, LoopOptions
from samrobust.evaluation.runner import RunSettings, run_all
from samrobust.protocol import load_protocol, with_trials
from samrobust.runs.store import read_run
from samrobust.segmenters.nano import WEIGHTS
from samrobust.types import DatasetOptions, Image, Prediction, PromptBatch
from tests.conftest import Doubtful, GrownBox, MemoryDataset, Shell, evaluate_one
from tests.faults import assert_same_tables, limit_memory, run, tables

IN_2096 = 4e9
"""Seconds."""
PROTOCOL = with_trials(load_protocol("stable-sam-table"), 3)
EVAL = (
    *("eval", "--dataset", "scenes", "--split", "4x96x64", "--segmenter", "ellipse"),
    *("--protocol", "gt-box", "--keep-masks", "all", "--workers", "0", "--quiet"),
)


class Spoiler(GrownBox):
    """Overwrites a photograph when another one is encoded: the run is in the middle then."""

    def __init__(self, path: Path, content: bytes | None) -> None:
        super().__init__()
        self._path, self._content = path, content

    def encode(self, images: Sequence[Image]) -> list[tuple[int, int]]:
        if self._content is None:
            self._path.unlink(missing_ok=True)
        else:
            self._path.write_bytes(self._content)
        return super().encode(images)


@pytest.mark.parametrize(
    ("n_left", "message"), [(900, "cannot be decoded: "), (None, "there is no such file")]
)
def test_a_photograph_that_breaks_in_the_middle_is_named_and_kept_apart(
    root: Path, tmp_path: Path, n_left: int | None, message: str
) -> None:
    dataset = DATASETS.load("folder")(DatasetOptions(root))
    photograph = root / "images/p2.png"
    content = photograph.read_bytes()
    segmenter = Spoiler(photograph, None if n_left is None else content[:n_left])
    loop = LoopOptions()
    settings = RunSettings(tmp_path / "results", loop=loop)

    def evaluate_all(settings: RunSettings, segmenter: GrownBox = segmenter) -> set[str]:
        (folder,) = run_all([PROTOCOL], [dataset], [segmenter], settings)
        return set(read_run(folder).scores["sample_id"])

    with pytest.raises(DatasetError, match=rf"images/p2\.png: {message}"):
        evaluate_all(settings)
    (folder,) = settings.results.iterdir()
    assert set(read_run(folder).scores["sample_id"]) == {"p0", "p1"}
    going_on = replace(settings, loop=replace(loop, keep_going=True))
    assert evaluate_all(going_on) == {"p0", "p1", "p3"}
    ((failed, reason),) = read_run(folder).failures.items()
    assert failed == "p2"
    assert reason.startswith(f"{photograph}: {message}")
    photograph.write_bytes(content)
    assert evaluate_all(settings, GrownBox()) == {"p0", "p1", "p2", "p3"}
    assert read_run(folder).failures == {}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_of_an_image_with_an_answer_that_is_not_finite_nothing_is_scored(
    small_dataset: MemoryDataset, value: float
) -> None:
    def results(segmenter: GrownBox, *, keep_going: bool) -> list[Evaluated | Failure]:
        options = LoopOptions(keep_going=keep_going)
        ids = small_dataset.ids()
        return list(
            evaluate_one(segmenter, small_dataset, PROTOCOL, sample_ids=ids, options=options)
        )

    reason = "image 'b': grown-box: a prediction is not finite (NaN or infinite logits or quality)"
    with pytest.raises(SegmenterError) as caught:
        results(Doubtful(value), keep_going=False)
    assert str(caught.value) == reason
    found = results(Doubtful(value), keep_going=True)
    assert found[1] == Failure("b", reason)
    assert [found[0], found[2]] == results(GrownBox(), keep_going=False)[::2]


def test_weights_that_answer_nan_store_nothing(shell: Shell, tmp_path: Path) -> None:
    weights = load_file(WEIGHTS)
    weights["mask_decoder.output_hypernetworks_mlps.0.layers.2.bias"][3] = torch.nan
    save_file(weights, tmp_path / "nan.safetensors")
    line = shell.refuses(
        *("eval", "--dataset", "scenes", "--split", "2x96x64", "--protocol", "gt-box"),
        *("--segmenter", "sam-nano", "--checkpoint", "nan.safetensors", "--workers", "0"),
    )
    assert line.startswith("image 'scene-00000': sam-nano: a prediction is not finite")
    (folder,) = (tmp_path / "results").iterdir()
    assert read_run(folder).scores.empty


class Hungry(GrownBox):
    """Has memory for so many prompts in one call, for fewer in the image that it encodes second."""

    def __init__(self, most: int, most_in_second: int, *, second: int = 2) -> None:
        super().__init__()
        self._most, self._second = (most, most_in_second), second
        self.n_refused = 0

    def predict(
        self, embedding: tuple[int, int], prompts: PromptBatch, *, multimask: bool = False
    ) -> Prediction:
        if len(prompts) > self._most[self.n_encoded == self._second]:
            self.n_refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().predict(embedding, prompts, multimask=multimask)


def test_where_memory_ends_half_as_many_prompts_go_on_and_the_manifest_says_it(
    small_dataset: MemoryDataset, tmp_path: Path
) -> None:
    def run_with(segmenter: GrownBox, results: str) -> Path:
        settings = RunSettings(tmp_path / results)
        (folder,) = run_all([PROTOCOL], [small_dataset], [segmenter], settings)
        return folder

    segmenter = Hungry(7, 2, second=3)  # after the image of its self-test
    lowered, whole = run_with(segmenter, "lowered"), run_with(GrownBox(), "whole")
    # 16 holds the 8 prompts of the first call, 8 as well, 4 fits; the second image wants 2
    assert segmenter.n_refused == 2 + 1
    assert segmenter.n_encoded == 1 + 2 + 1
    assert max(segmenter.n_prompts) == 4
    assert lowered.name == whole.name
    assert_same_tables(tmp_path / "lowered", tmp_path / "whole")
    assert read_run(lowered).manifest.memory_halvings == 3
    assert read_run(whole).manifest.memory_halvings == 0
    run_with(GrownBox(), "lowered")  # has nothing left to do
    assert read_run(lowered).manifest.memory_halvings == 3


def test_memory_that_holds_no_prompt_or_no_image_is_one_line(small_dataset: MemoryDataset) -> None:
    class NoImage(GrownBox):
        def encode(self, images: Sequence[Image]) -> list[tuple[int, int]]:
            if self.n_encoded == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().encode(images)

    def failures(segmenter: GrownBox) -> list[str]:
        options, ids = LoopOptions(5, keep_going=True), small_dataset.ids()
        found = evaluate_one(segmenter, small_dataset, PROTOCOL, sample_ids=ids, options=options)
        return [each.reason for each in found if isinstance(each, Failure)]

    assert failures(Hungry(5, 0)) == [
        "image 'b': grown-box: out of device memory with a single prompt"
    ]
    assert failures(NoImage())[0] == (
        "image 'b': grown-box: out of device memory when encoding 33 x 90 pixels; a smaller "
        "variant or --dtype may fit"
    )


def test_another_error_of_a_segmenter_is_not_taken_for_memory(small_dataset: MemoryDataset) -> None:
    class Broken(GrownBox):
        def predict(self, *_: object, **__: object) -> Prediction:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(
            evaluate_one(Broken(), small_dataset, PROTOCOL, sample_ids=["a"], options=LoopOptions())
        )


def test_a_process_that_is_refused_memory_goes_on_with_fewer_prompts(tmp_path: Path) -> None:
    command = (
        *("eval", "--dataset", "scenes", "--split", "1x96x64", "--segmenter", "sam-nano"),
        *("--protocol", "noisy-box", "--workers", "0", "--device", "cpu", "--quiet"),
        *("--trials", "60"),
    )
    assert run(tmp_path / "whole", command).code == 0
    hungry = (*command, "--batch-size", "1024")
    for eighths in range(4, 11):  # of a GiB: the least in which the command comes to its end
        limits = partial(limit_memory, eighths * 2**27), partial(limit_memory, None)
        folder = tmp_path / f"short-{eighths}"
        short = run(folder, limits[0], hungry, limits[1])
        if short.code == 0:
            break
    assert short.code == 0, short.said
    assert short.errors == []
    (manifest,) = folder.glob("results/*/manifest.json")
    assert json.loads(manifest.read_text())["memory_halvings"] >= 1
    assert "out of device memory on 'scene-00000'" in short.said
    (mine, _, _, _), (theirs, _, _, _) = (
        tables(each / "results") for each in (folder, tmp_path / "whole")
    )
    pd.testing.assert_frame_equal(mine, theirs, atol=0.02)  # a chunk's size rounds otherwise


@pytest.mark.parametrize("table", ["scores", "objects", "masks", "photographs"])
def test_a_part_cut_short_is_named_and_its_images_are_done_again_without_it(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setattr(samrobust.runs.store, "FLUSH_SECONDS", -1.0)
    assert shell(*EVAL, "--out", "whole").code == 0
    assert shell(*EVAL, "--out", "cut").code == 0
    (part,) = tmp_path.glob(f"cut/*/{table}/part-00001.parquet")
    content = part.read_bytes()
    for n_left in (0, 3, len(content) // 2, len(content) - 1):
        part.write_bytes(content[:n_left])
        line = shell.refuses(*EVAL, "--out", "cut")
        assert line.startswith(f"{part.relative_to(tmp_path)}: cannot be read, perhaps it was cut")
    part.unlink()
    assert shell(*EVAL, "--out", "cut").code == 0
    assert_same_tables(tmp_path / "cut", tmp_path / "whole")


def test_a_clock_that_goes_backwards_changes_nothing(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samrobust.runs.store, "FLUSH_SECONDS", -1.0)
    assert shell(*EVAL, "--out", "whole").code == 0
    assert shell(*EVAL, "--out", "back").code == 0
    (folder,) = (tmp_path / "back").iterdir()
    created = read_run(folder).manifest.created
    (folder / "scores/part-00001.parquet").unlink()
    for file in folder.rglob("*.*"):
        os.utime(file, (IN_2096, IN_2096))  # as if the clock had been set back since then
    moments = itertools.count(time.time(), -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    assert shell(*EVAL, "--out", "back").code == 0
    assert_same_tables(tmp_path / "back", tmp_path / "whole")
    parts = sorted((folder / "scores").iterdir())
    assert [part.name for part in parts] == [f"part-{n:05d}.parquet" for n in (0, 2, 3, 4)]
    assert parts[-1].stat().st_mtime < parts[0].stat().st_mtime
    assert read_run(folder).manifest.created == created
