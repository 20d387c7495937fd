"""Steps per second of a training, and its peak memory, on drawn photographs.

    python -m benchmarks.training_speed --model stable-sam --base sam --variant vit_l --images 4

The training loop of `samrobust train` with the model's default recipe, its last phase: loading
processes, gradients, moving average. SAM's weights are random, which times do not depend on.
Prints JSON.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import typer

from benchmarks.peaks import peak_gib
from benchmarks.photograph import DrawnPhotograph, save_random_sam
from benchmarks.setting import HEIGHT, WIDTH
from samrobust.registry import one_of
from samrobust.segmenters.device import keep_large_blocks, resolve_device
from samrobust.training import loop
from samrobust.training.checkpoints import TrainingFolder
from samrobust.training.data import TrainingData
from samrobust.training.examples import Pool
from samrobust.training.loop import Training
from samrobust.training.models import TraineeOptions, build_trainee, default_recipe
from samrobust.training.recipe import Recipe, load_recipe, recipe_for
from samrobust.types import EncoderDtype

HQSEG_44K = 44_320
"""Images of HQSeg-44K (docs/sources/hq-sam.md, 1.2)."""
N_IMAGES, N_OBJECTS = 64, 7
FOREVER = 10**6
"""Steps of the recipe, of which as many are done as there is time for."""


def measure(
    *,
    model: Annotated[str, typer.Option(help="sam-nano, stable-sam, ...")] = "sam-nano",
    base: Annotated[str, typer.Option(help="SAM that a part of is trained.")] = "",
    variant: Annotated[str, typer.Option(help="Of the base: vit_b, vit_l or vit_h.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the image encoder.")] = "float32",
    images: Annotated[int, typer.Option(help="Per step; 0 for the recipe's.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that draw examples.")] = 0,
    seconds: Annotated[float, typer.Option(help="Time limit, after the warm-up.")] = 30,
    steps: Annotated[int, typer.Option(help="Between two looks at the clock.")] = 20,
) -> None:
    """Measure one training."""
    keep_large_blocks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = folder / f"{variant}.pth" if variant else None
        if weights is not None:
            save_random_sam(variant, weights)
        kind: EncoderDtype = one_of(EncoderDtype, dtype, kind="dtype")
        options = TraineeOptions(resolve_device(device), kind, base, variant, weights)
        recipe = endless(model, images)
        started = time.perf_counter()
        times = []
        with patch.object(loop, "LOG_EVERY", steps):
            for now in clocked(recipe, options, folder / "training", workers):
                times.append(now)
                if len(times) > 1 and now - times[0] > seconds:
                    break
    a_step = (times[-1] - times[0]) / (steps * (len(times) - 1))
    per_step = recipe.phases[-1].images
    found = {
        "steps": steps * (len(times) - 1),
        "images_per_step": per_step,
        "seconds_per_step": a_step,
        "warm_up": times[0] - started,
        "peak_gib": peak_gib(options.device),
        "hours_per_hqseg_44k": HQSEG_44K / per_step * a_step / 3600,
    }
    print(json.dumps(found))


def endless(model: str, images: int) -> Recipe:
    """Return the last phase of a model's default recipe, of very many steps, without validation."""
    recipe = recipe_for(load_recipe(default_recipe(model)), model)
    phase = recipe.phases[-1]
    phase = replace(phase, images=images or phase.images, steps=FOREVER, epochs=0)
    return replace(recipe, phases=(phase,), judge_images=0)


def clocked(recipe: Recipe, options: TraineeOptions, folder: Path, workers: int) -> Iterator[float]:
    """Train, and yield the clock's seconds after each row of the log."""
    photographs = DrawnPhotograph(WIDTH, HEIGHT, N_OBJECTS, N_IMAGES)
    data = TrainingData((Pool(photographs, photographs.ids()),), (), "drawn photographs")
    trainee = build_trainee(recipe, options)
    training = Training(trainee, recipe, data, TrainingFolder(folder))
    for _ in training.run(workers=workers):
        yield time.perf_counter()


if __name__ == "__main__":
    typer.run(measure)
