"""Ask how much of a box's quality can be read from the token that a router of Stable-SAM sees.

python -m benchmarks.router_sees --data-root DATA

Of the package's plugins, on held-out photographs: ridge regression, on the token, of each box's IoU
with the exact one, fitted on four fifths of a data set's photographs and judged on the rest, in
turns.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samrobust.evaluation.inspection import routed_boxes
from samrobust.protocol import load_protocol, with_trials
from samrobust.segmenters.stable_sam import build_stable_sam
from samrobust.training.data import open_data
from samrobust.training.recipe import load_recipe
from samrobust.types import Floats, SegmenterOptions

FOLDS = 5
PENALTIES = (10.0, 100.0, 1000.0)
"""Of standardised tokens; the best of them is reported, which favours the token."""


def main() -> None:
    """Print the explained share of variance for each data set and layer, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--folder", action="append", help="of a data set; default: all")
    arguments = parser.parse_args()
    stable = build_stable_sam(SegmenterOptions())
    protocol = with_trials(load_protocol("noisy-box"), 1)
    print("| data | boxes | layer | R2 |\n| --- | --- | --- | --- |")
    for each in open_data(load_recipe("sam-nano", "photographs"), arguments.data_root).held_out:
        info = each.dataset.info
        if arguments.folder and info.folder not in arguments.folder:
            continue
        found = routed_boxes(stable, each.dataset, each.sample_ids, protocol)
        for layer, tokens in found.tokens.items():
            best = max(explained(tokens, found.box_iou, found.image, by) for by in PENALTIES)
            row = f"| {info.label} | {len(tokens)} | {layer} | {best:.2f} |"
            print(row, flush=True)


def explained(x: Floats, y: Floats, owner: npt.NDArray[np.int64], penalty: float) -> float:
    """Return R2 of a ridge regression, cross-validated over owners; below 0 where it misleads.

    Args:
        x: (P, C).
        y: (P,).
        owner: (P,), what must not be in both parts of a fold.
        penalty: of the squared weights of standardised x.
    """
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    guess = np.empty_like(y)
    for fold in range(FOLDS):
        held = owner % FOLDS == fold
        known, mean = x[~held], y[~held].mean()
        square = known.T @ known + penalty * np.eye(x.shape[1])
        guess[held] = mean + x[held] @ np.linalg.solve(square, known.T @ (y[~held] - mean))
    return float(1 - ((y - guess) ** 2).sum() / ((y - y.mean()) ** 2).sum())


if __name__ == "__main__":
    main()
