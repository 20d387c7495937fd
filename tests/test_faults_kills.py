"""SIGKILL in an evaluation and in a training: each goes on to the undisturbed end.

At the points where a file is written or moved to its place; and, nightly, at 30 random moments.
"""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from samrobust.runs.store import read_run
from samrobust.segmenters.weights import load_tensors
from tests.faults import Ended, Step, assert_same_tables, kill_at, run
from tests.trainings import same_tensors

KILLS = 30
N_IMAGES, N_STEPS = 8, 4
EVAL = (
    *("eval", "--dataset", "scenes", "--split", f"{N_IMAGES}x64x48", "--segmenter", "ellipse"),
    *("--protocol", "gt-box", "--keep-masks", "all", "--workers", "0", "--quiet"),
)
TRAIN = (
    *("train", "stable-sam", "--recipe", "robust", "--recipe", "../short.toml", "--device", "cpu"),
    *("--data", "scenes", "--split", f"{N_STEPS}x64x48", "--workers", "0", "--quiet"),
)
SHORT = """
judge_images = 0

[[phases]]
name = "short"
epochs = 1
images = 1
objects = 1
kinds = 1
learning_rate = 1e-3
"""


Point = tuple[Literal["open", "os.rename"], str, int]
"""Arguments of `kill_at`: what happens next, to which file, and the how many-th time."""
EVAL_POINTS: dict[str, Point] = {
    "no manifest": ("open", r"/manifest\.json", 1),
    "manifest not in its place": ("os.rename", r"/manifest\.json$", 1),
    "first part not in its place": ("os.rename", r"/objects/part-0*\.parquet$", 1),
    "objects and masks without scores": ("os.rename", r"/scores/part-0*\.parquet$", 1),
    "one image stored": ("open", r"/objects/part-0*1\.parquet", 1),
    "last scores not in their place": ("os.rename", r"/scores/part-", N_IMAGES),
}
TRAIN_POINTS: dict[str, Point] = {
    "no log": ("open", r"/metrics\.jsonl", 1),
    "a step in the log, no state": ("open", r"/state\.pt", 1),
    "first state not in its place": ("os.rename", r"/state\.pt$", 1),
    "second state not in its place": ("os.rename", r"/state\.pt$", 2),
    "no weights": ("open", r"stable-sam\.safetensors", 1),
    "weights not in their place": ("os.rename", r"stable-sam\.safetensors$", 1),
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Return the folder of an undisturbed evaluation, and how it ended."""
    folder = tmp_path_factory.mktemp("evaluated") / "whole"
    return folder, run(folder, EVAL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Return the folder of an undisturbed training, and how it ended."""
    folder = tmp_path_factory.mktemp("trained") / "whole"
    folder.with_name("short.toml").write_text(SHORT)
    return folder, run(folder, TRAIN)


@pytest.mark.parametrize("name", EVAL_POINTS)
def test_an_evaluation_killed_where_it_writes_goes_on_to_the_same_rows(
    tmp_path: Path, evaluated: tuple[Path, Ended], name: str
) -> None:
    event, pattern, nth = EVAL_POINTS[name]
    folder = tmp_path / "killed"
    ended = run(folder, partial(kill_at, event, pattern, nth=nth), EVAL)
    assert ended.code == -signal.SIGKILL
    manifests = list(folder.glob("results/*/manifest.json"))
    n_stored = [N_IMAGES - read_run(path.parent).n_missing for path in manifests]
    stored = {"one image stored": 1, "last scores not in their place": N_IMAGES - 1}
    assert n_stored == ([] if "manifest" in name else [stored.get(name, 0)])
    misdate(folder, np.random.default_rng(0))
    assert run(folder, EVAL).code == 0
    assert_same_tables(folder / "results", evaluated[0] / "results")


@pytest.mark.parametrize("name", TRAIN_POINTS)
def test_a_training_killed_where_it_writes_goes_on_to_the_same_weights(
    tmp_path: Path, trained: tuple[Path, Ended], name: str
) -> None:
    event, pattern, nth = TRAIN_POINTS[name]
    (tmp_path / "short.toml").write_text(SHORT)
    folder = tmp_path / "killed"
    ended = run(folder, partial(kill_at, event, pattern, nth=nth), TRAIN)
    assert ended.code == -signal.SIGKILL
    steps = [state(folder)["step"] for _ in folder.glob("*/state.pt")]
    stored = {"second state not in its place": [1]}
    assert steps == ([N_STEPS] if "weights" in name else stored.get(name, []))
    misdate(folder, np.random.default_rng(0))
    assert run(folder, TRAIN).code == 0
    assert same_tensors(learned(folder), learned(trained[0]))


@pytest.mark.nightly
def test_an_evaluation_killed_at_any_moment_goes_on_to_the_same_rows(
    tmp_path: Path, evaluated: tuple[Path, Ended]
) -> None:
    whole, ended = evaluated
    assert ended.code == 0
    n_stored = []
    for folder in killed(tmp_path, EVAL, ended.seconds):
        manifests = list(folder.glob("results/*/manifest.json"))
        n_stored += [N_IMAGES - read_run(path.parent).n_missing for path in manifests]
        assert run(folder, EVAL).code == 0
        assert_same_tables(folder / "results", whole / "results")
    assert any(0 < n < N_IMAGES for n in n_stored)  # not all before the first part or after all


@pytest.mark.nightly
def test_a_training_killed_at_any_moment_goes_on_to_the_same_weights(
    tmp_path: Path, trained: tuple[Path, Ended]
) -> None:
    (tmp_path / "short.toml").write_text(SHORT)
    whole, ended = trained
    assert ended.code == 0
    steps = []
    for folder in killed(tmp_path, TRAIN, ended.seconds):
        steps += [state(folder)["step"] for _ in folder.glob("*/state.pt")]
        assert run(folder, TRAIN).code == 0
        assert same_tensors(learned(folder), learned(whole))
    assert any(0 < step < N_STEPS for step in steps)


def killed(path: Path, command: Step, seconds: float) -> Iterator[Path]:
    """Yield folders in which a command was killed at a moment of its seconds, 30 of them."""
    rng, n_killed = np.random.default_rng(0), 0
    for number, moment in enumerate(rng.uniform(0, 1, 4 * KILLS)):
        folder = path / f"killed-{number}"
        ended = run(folder, command, kill_after=moment * seconds)
        if ended.code != -signal.SIGKILL:
            assert ended.code == 0
            seconds = ended.seconds  # it was quicker than the undisturbed one, and had ended
            continue
        misdate(folder, rng)
        yield folder
        n_killed += 1
        if n_killed == KILLS:
            return
    raise AssertionError(f"only {n_killed} of {4 * KILLS} commands were killed")


def misdate(folder: Path, rng: np.random.Generator) -> None:
    """Let files be of any time between 1970 and 2096, as after clocks that were wrong."""
    for file in folder.rglob("*.*"):
        os.utime(file, (rng.uniform(0, 4e9),) * 2)


def state(folder: Path) -> dict[str, Any]:
    """Return the state of the training in a folder."""
    found: dict[str, Any] = torch.load(folder / "stable-sam-training/state.pt", weights_only=True)
    return found


def learned(folder: Path) -> dict[str, Tensor]:
    """Return weights, averages and the file that was written in the end."""
    stored, written = state(folder), load_tensors(folder / "stable-sam.safetensors")
    averages = {f"average {name}": x for name, x in stored["average"].items()}
    return {**stored["learned"], **averages, **{f"file {name}": x for name, x in written.items()}}
