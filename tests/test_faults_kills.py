"""SIGKILL at 30 moments of an evaluation and of a training: each goes on to the undisturbed end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samrobust.runs.store import read_run
from samrobust.segmenters.weights import load_tensors
from tests.faults import Step, assert_same_tables, run
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


def killed(path: Path, command: Step, seconds: float) -> Iterator[Path]:
    """Yield folders in which a command was killed at a moment of its seconds, 30 of them.

    Their files are of any time between 1970 and 2096, as after clocks that were wrong.
    """
    rng, n_killed = np.random.default_rng(0), 0
    for number, moment in enumerate(rng.uniform(0, 1, 4 * KILLS)):
        folder = path / f"killed-{number}"
        ended = run(folder, command, kill_after=moment * seconds)
        if ended.code != -signal.SIGKILL:
            assert ended.code == 0
            seconds = ended.seconds  # it was quicker than the undisturbed one, and had ended
            continue
        for file in folder.rglob("*.*"):
            os.utime(file, (rng.uniform(0, 4e9),) * 2)
        yield folder
        n_killed += 1
        if n_killed == KILLS:
            return
    raise AssertionError(f"only {n_killed} of {4 * KILLS} commands were killed")


def test_an_evaluation_killed_at_any_moment_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", EVAL)
    assert whole.code == 0
    n_stored = []
    for folder in killed(tmp_path, EVAL, whole.seconds):
        manifests = list(folder.glob("results/*/manifest.json"))
        n_stored += [N_IMAGES - read_run(path.parent).n_missing for path in manifests]
        assert run(folder, EVAL).code == 0
        assert_same_tables(folder / "results", tmp_path / "whole/results")
    assert any(0 < n < N_IMAGES for n in n_stored)  # not all before the first part or after all


def test_a_training_killed_at_any_moment_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(SHORT)
    whole = run(tmp_path / "whole", TRAIN)
    assert whole.code == 0
    wanted = learned(tmp_path / "whole")
    steps = []
    for folder in killed(tmp_path, TRAIN, whole.seconds):
        steps += [state(folder)["step"] for _ in folder.glob("*/state.pt")]
        assert run(folder, TRAIN).code == 0
        assert same_tensors(learned(folder), wanted)
    assert any(0 < step < N_STEPS for step in steps)


def state(folder: Path) -> dict[str, Any]:
    """Return the state of the training in a folder."""
    found: dict[str, Any] = torch.load(folder / "stable-sam-training/state.pt", weights_only=True)
    return found


def learned(folder: Path) -> dict[str, Tensor]:
    """Return weights, averages and the file that was written in the end."""
    stored, written = state(folder), load_tensors(folder / "stable-sam.safetensors")
    averages = {f"average {name}": x for name, x in stored["average"].items()}
    return {**stored["learned"], **averages, **{f"file {name}": x for name, x in written.items()}}
