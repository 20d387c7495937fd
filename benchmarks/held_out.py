"""Judge segmenters on the photographs that a recipe holds out of training.

python -m benchmarks.held_out --data-root DATA --segmenter ellipse --segmenter sam-nano
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from samrobust.report.statistics import INTERVAL, bootstrap_weights
from samrobust.segmenters import SEGMENTERS
from samrobust.training.data import open_data
from samrobust.training.examples import Pool
from samrobust.training.recipe import load_recipe
from samrobust.training.validation import PROMPTS, image_scores, mean_scores
from samrobust.types import Floats, SegmenterOptions


def main() -> None:
    """Print a Markdown table: mIoU in % with 95 % intervals, and the correlation of quality."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--segmenter", action="append", required=True)
    parser.add_argument("--folder", action="append", help="of a data set; repeatable; default: all")
    arguments = parser.parse_args()
    held_out = open_data(load_recipe("sam-nano", "photographs"), arguments.data_root).held_out
    names = [*PROMPTS, "quality"]
    print("| data | images | objects | segmenter |", " | ".join(names), "|")
    print("|" + " --- |" * (4 + len(names)))
    for pool in held_out:
        if not arguments.folder or pool.dataset.info.folder in arguments.folder:
            _print_rows(pool, arguments.segmenter)


def _print_rows(pool: Pool, segmenters: Sequence[str]) -> None:
    """Print a row for each segmenter, and one for what each is ahead of the first."""
    info = pool.dataset.info
    first: dict[str, Floats] = {}
    for segmenter in segmenters:
        model = SEGMENTERS.load(segmenter)(SegmenterOptions())
        of_images = image_scores(model, pool.dataset, pool.sample_ids)
        counts = np.array([len(scores["box"]) for scores in of_images], np.float64)
        weights = np.concatenate(
            [np.ones((1, len(counts))), *bootstrap_weights(len(counts), key=info.key)]
        )
        means = {
            name: weights @ [scores[name].sum() for scores in of_images] / (weights @ counts)
            for name in PROMPTS
            if name in of_images[0]
        }
        quality = mean_scores(of_images).get("quality")
        cells = [*_cells(means), "-" if quality is None else f"{quality:.2f}"]
        where = f"| {info.label} | {len(pool.sample_ids)} | {counts.sum():,.0f} | {segmenter} |"
        print(where, " | ".join(cells), "|", flush=True)
        if first:
            ahead = {name: means[name] - first[name] for name in means.keys() & first.keys()}
            print(
                f"| | | | ahead of {segmenters[0]} |",
                " | ".join([*_cells(ahead, sign="+"), "-"]),
                "|",
            )
        else:
            first = means


def _cells(means: Mapping[str, Floats], *, sign: str = "") -> list[str]:
    """Return text for each kind of prompt, of its mean and of those of the bootstrap samples."""
    cells = []
    for name in PROMPTS:
        if name not in means:
            cells.append("-")
            continue
        estimate, *resampled = 100 * means[name]
        low, high = np.quantile(resampled, INTERVAL)
        cells.append(f"{estimate:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]")
    return cells


if __name__ == "__main__":
    main()
