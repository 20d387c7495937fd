"""A training of seconds: its recipe, what it learns from, and the training itself."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samrobust.cli import main
from samrobust.training import loop
from samrobust.training.checkpoints import TrainingFolder
from samrobust.training.data import open_data
from samrobust.training.examples import Example
from samrobust.training.loop import Training
from samrobust.training.models import TraineeOptions, build_trainee
from samrobust.training.recipe import Recipe, load_recipe
from samrobust.types import Instance, Sample
from tests.conftest import MemoryDataset, rectangle

TINY = Path(__file__).parent / "tiny.toml"
SHORT_PHASE = """
[[phases]]
name = "short"
steps = 1
images = 1
objects = 1
learning_rate = 1e-3
"""
"""Changes a recipe to one step of one image."""


def tiny_recipe() -> Recipe:
    """Return 8 steps on ellipses and 8 on scenes, of 2 images each."""
    return load_recipe(str(TINY))


def open_training(recipe: Recipe, path: Path) -> Training:
    """Return a training in a folder, from the beginning or from where it stopped."""
    trainee = build_trainee(recipe, TraineeOptions())
    return Training(trainee, recipe, open_data(recipe, None), TrainingFolder(path))


def rectangles() -> MemoryDataset:
    """Return images of three odd shapes with two rectangles each, one of them at the border."""
    rng = np.random.default_rng(0)
    samples = []
    for name, (height, width) in (("wide", (61, 133)), ("high", (119, 47)), ("even", (75, 75))):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        instances = [
            Instance("1", rectangle((height, width), (0, 5, width // 2, height // 2))),
            Instance("2", rectangle((height, width), (9, height // 3, width - 4, height - 7))),
        ]
        samples.append(Sample(name, image, instances))
    return MemoryDataset(samples)


def same_example(one: Example, other: Example) -> bool:
    """Return whether two examples are the same to the last bit."""
    arrays = [
        pair
        for mine, theirs in zip(one.prompts, other.prompts, strict=True)
        for pair in (
            (mine.points, theirs.points),
            (mine.labels, theirs.labels),
            (mine.boxes, theirs.boxes),
        )
    ]
    frames = [(each.key, each.size_hw, each.input_size_hw) for each in (one, other)]
    return (
        frames[0] == frames[1]
        and torch.equal(one.image, other.image)
        and torch.equal(one.targets, other.targets)
        and all(np.array_equal(a, b) for a, b in arrays)  # type: ignore[arg-type]
    )


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two states have the same names and numbers."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def start_command(folder: Path, *arguments: str, environment: Mapping[str, str]) -> BaseProcess:
    """Return a process that runs a command line in a folder, logging and saving often.

    It is forked from a server that has imported torch once for all. What it prints lies in
    `process.txt`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["samrobust.cli", "samrobust.training.loop"])
    process = context.Process(target=_run_command, args=(folder, arguments, dict(environment)))
    process.start()
    return process


def _run_command(folder: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    loop.SAVE_SECONDS, loop.LOG_EVERY = 0.3, 1
    sys.argv = ["samrobust", *arguments]
    with (
        Path("process.txt").open("w", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        main()
