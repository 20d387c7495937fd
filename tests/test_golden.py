"""What earlier versions stored: names, hashes and numbers that no later version may change.

The training is on the SAM-nano of version 0.2; all else is of 0.1.0.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from samrobust.datasets.scenes import build_scenes
from samrobust.evaluation.loop import Evaluated, LoopOptions
from samrobust.evaluation.prompts import draw_prompts
from samrobust.protocol import load_protocol, protocol_hash
from samrobust.report.formats import breakdown_csv, differences_csv, to_csv
from samrobust.report.summary import Section, summarise
from samrobust.runs.manifest import read_manifest, run_name, write_manifest
from samrobust.runs.store import read_run
from samrobust.segmenters import build_segmenter
from samrobust.segmenters.weights import load_tensors
from samrobust.training.checkpoints import TrainingFolder
from samrobust.training.data import open_data
from samrobust.training.loop import Training
from samrobust.training.models import TraineeOptions, build_trainee
from samrobust.training.recipe import (
    Recipe,
    counted,
    load_recipe,
    recipe_for,
    recipe_hash,
    with_data,
)
from samrobust.types import DatasetOptions
from tests.conftest import evaluate_one

GOLDEN = Path(__file__).parent / "golden"
RUNS = sorted((GOLDEN / "results").iterdir())
HASHES: dict[str, Any] = json.loads((GOLDEN / "hashes.json").read_text())


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_stored_run_keeps_its_name_and_manifest(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    assert run_name(manifest) == folder.name
    write_manifest(tmp_path, manifest)
    stored = (folder / "manifest.json").read_text()
    assert (tmp_path / "manifest.json").read_text() == stored


@pytest.mark.parametrize(
    ("name", "to_text"),
    [("tables", to_csv), ("differences", differences_csv), ("breakdown", breakdown_csv)],
)
def test_stored_runs_are_reported_with_the_same_numbers(
    name: str, to_text: Callable[[Sequence[Section]], str]
) -> None:
    text = to_text(summarise([read_run(folder) for folder in RUNS]))
    assert text == (GOLDEN / f"report/{name}.csv").read_text()


@pytest.mark.parametrize("name", HASHES["protocol_hash"])
def test_a_protocol_keeps_its_hash(name: str) -> None:
    assert protocol_hash(load_protocol(name)) == HASHES["protocol_hash"][name]


@pytest.mark.parametrize("name", HASHES["prompt_hashes"])
def test_a_protocol_keeps_its_prompts(name: str) -> None:
    scenes = build_scenes(DatasetOptions(split="2x96x64"))
    hashes = [
        found
        for sample_id in scenes.ids()
        for draws in draw_prompts(scenes[sample_id], scenes.info.key, load_protocol(name))
        for found in draws.hashes
    ]
    assert HASHES["prompt_hashes"][name] == {
        "count": len(hashes),
        "sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "first": hashes[0],
        "last": hashes[-1],
    }


@pytest.mark.parametrize("name", HASHES["recipe_hash"])
def test_a_recipe_keeps_its_hash(name: str) -> None:
    model, _, files = name.partition(" by ")
    recipe = recipe_for(load_recipe(*files.split("+")), model)
    assert recipe_hash(recipe) == HASHES["recipe_hash"][name]


def test_the_same_prompts_get_the_same_scores() -> None:
    (folder,) = (folder for folder in RUNS if "grabcut" in folder.name)
    protocol = load_protocol(str(GOLDEN / "golden.toml"))
    scenes = build_scenes(DatasetOptions(split="6x96x64"))
    results = evaluate_one(
        build_segmenter("grabcut"),
        scenes,
        protocol,
        sample_ids=scenes.ids(),
        options=LoopOptions(),
    )
    scores = [score for image in results if isinstance(image, Evaluated) for score in image.scores]
    key = ["sample_id", "instance_id", "condition", "trial", "metric"]
    columns = [*key, "value", "prompt_hash"]
    rows = [[getattr(score, name) for name in columns] for score in scores]
    stored = pd.concat(
        [pd.read_parquet(part) for part in sorted((folder / "scores").glob("*.parquet"))]
    )
    ours = pd.DataFrame(rows, columns=columns).sort_values(key, ignore_index=True)
    theirs = stored.sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(
        ours[[*key, "prompt_hash"]], theirs[[*key, "prompt_hash"]], check_dtype=False
    )
    # another processor or release of OpenCV may round otherwise: a pixel or two at a border
    assert np.abs(ours["value"] - theirs["value"]).max() < 0.02


def test_a_training_goes_on_from_a_stored_state(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "training/state.pt", tmp_path)
    recipe = _token_recipe()
    data = open_data(recipe, None)
    recipe = counted(recipe, data.n_images)
    training = Training(
        build_trainee(recipe, TraineeOptions()), recipe, data, TrainingFolder(tmp_path)
    )
    assert training.step == 2
    for _ in training.run(workers=0):
        pass
    training.save(tmp_path / "ours.safetensors")
    (ours,) = load_tensors(tmp_path / "ours.safetensors").values()
    (theirs,) = load_tensors(GOLDEN / "training/token-tuned.safetensors").values()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def _token_recipe() -> Recipe:
    recipe = load_recipe("robust", str(GOLDEN / "training/short.toml"))
    return with_data(recipe_for(recipe, "token-tuned"), ["scenes"], "4x96x64", in_root=False)
