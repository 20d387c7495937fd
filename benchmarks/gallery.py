"""Draw masks on held-out photographs, chosen by a fixed rule: good and bad ones alike.

python -m benchmarks.gallery --data-root DATA --out docs/experiments/img/sam-nano.jpg

Of each photograph set that a recipe holds out, photographs at even distances in the order of their
ids, and of each the object of median area among those of at least 1,024 pixels.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from samrobust.degradations.boxes import ExactBox
from samrobust.degradations.points import RandomPoints
from samrobust.evaluation.inspection import median_instance
from samrobust.metrics.overlap import iou
from samrobust.seeding import keyed_generator
from samrobust.segmenters import SEGMENTERS
from samrobust.training.data import open_data
from samrobust.training.examples import Pool
from samrobust.training.recipe import load_recipe
from samrobust.types import Instance, Prompt, PromptBatch, Sample, SegmenterOptions

COLUMNS = 4
INCHES = 2.4
DPI = 110
TARGET, MASK = "#0072B2", "#D55E00"


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--segmenter", default="sam-nano")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--prompt", choices=["box", "points-3"], default="box")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    held_out = open_data(load_recipe("sam-nano", "photographs"), arguments.data_root).held_out
    sets = [each for each in held_out if each.dataset.info.name != "scenes"]
    segmenter = SEGMENTERS.load(arguments.segmenter)(SegmenterOptions())
    n_rows = -(-arguments.count // COLUMNS)
    figure = Figure(figsize=(COLUMNS * INCHES, n_rows * INCHES), layout="constrained")
    chosen = _choose(sets, arguments.count)
    for axes, (sample, instance) in zip(figure.subplots(n_rows, COLUMNS).flat, chosen, strict=True):
        degradation = ExactBox() if arguments.prompt == "box" else RandomPoints(3)
        prompt = degradation(instance.mask, keyed_generator("gallery", sample.sample_id))
        with torch.inference_mode():
            (embedding,) = segmenter.encode([sample.image])
            masks = segmenter.predict(embedding, PromptBatch.stack([prompt])).masks[0].cpu()
        _draw(axes, sample, instance, prompt, masks)
    figure.savefig(arguments.out, dpi=DPI)


def _choose(sets: list[Pool], count: int) -> list[tuple[Sample, Instance]]:
    """Return photographs and objects, from the sets in turn."""
    chosen = []
    for index in range(count):
        each = sets[index % len(sets)]
        wanted = -(-(count - index % len(sets)) // len(sets))  # photographs of this set
        place = (index // len(sets)) * len(each.sample_ids) // wanted
        for sample_id in each.sample_ids[place:]:
            sample = each.dataset[sample_id]
            instance = median_instance(sample)
            if instance is not None:
                chosen.append((sample, instance))
                break
    return chosen


def _draw(
    axes: Axes, sample: Sample, instance: Instance, prompt: Prompt, masks: torch.Tensor
) -> None:
    axes.imshow(sample.image)
    axes.contour(instance.mask, levels=[0.5], colors=TARGET, linewidths=1.2)
    mask = masks[0].numpy()
    if mask.any():
        axes.contourf(mask, levels=[0.5, 1.5], colors=MASK, alpha=0.35)
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="white", linewidth=0.8)
    if len(prompt.points):
        axes.plot(*np.array(prompt.points).T, "*", color="white", markeredgecolor="black")
    value = iou(masks, torch.from_numpy(instance.mask.copy())).item()
    axes.set_title(f"IoU {100 * value:.0f}", fontsize=8)
    axes.set_axis_off()


if __name__ == "__main__":
    main()
