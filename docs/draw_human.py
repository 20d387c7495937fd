"""Draw how human the boxes of published recipes are: `python docs/draw_human.py [FILE]`.

It draws the human percentile of each recipe's median box against the size of the object, and prints
some. Sides are in pixels of a model's square input of 1,024; aspect ratios vary as in the tables.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from samrobust.degradations.human import box_loss, human_percentile
from samrobust.seeding import keyed_generator
from samrobust.types import Floats

TABLE = (60, 200, 600)
"""Sides whose percentiles are printed."""
SIDES = np.geomspace(20, 800, 25)
BOXES = 2000
ASPECT = 0.5
"""Standard deviation of the logarithm of the aspect ratio."""
Moves = Callable[[np.random.Generator, Floats], Floats]
"""Of (N, 4) outward moves of left, top, right and bottom, given the sides (N, 2)."""


def capped_uniform(rng: np.random.Generator, sides: Floats) -> Floats:
    """Return moves of up to 10 % of the sides, at most 20 pixels."""
    most = np.minimum(0.1 * np.tile(sides, 2), 20)
    return most * rng.uniform(-1, 1, most.shape)


def capped_normal(rng: np.random.Generator, sides: Floats) -> Floats:
    """Return normal moves of 10 % of the sides, at most 20 pixels."""
    return np.clip(0.1 * np.tile(sides, 2) * rng.standard_normal((len(sides), 4)), -20, 20)


def outward(most: float) -> Moves:
    """Return moves outwards by up to so many pixels."""
    return lambda rng, sides: rng.uniform(0, most, (len(sides), 4))


def box_noise(level: float) -> Moves:
    """Return the moves of `box-noise`, with a shift and a scale of `level`."""

    def moves(rng: np.random.Generator, sides: Floats) -> Floats:
        shift, scale = level * rng.uniform(-1, 1, (2, len(sides), 2)) / 2
        return np.concatenate([scale - shift, scale + shift], axis=1) * np.tile(sides, 2)

    return moves


def translation(most: float) -> Moves:
    """Return moves of the whole box by up to `most` sides on each axis."""

    def moves(rng: np.random.Generator, sides: Floats) -> Floats:
        shift = most * rng.uniform(-1, 1, (len(sides), 2)) * sides
        return np.concatenate([-shift, shift], axis=1)

    return moves


RECIPES: dict[str, Moves] = {
    "SAM 2, training: 10 % of a side, at most 20 px": capped_uniform,
    "SAM, training: normal, 10 %, at most 20 px": capped_normal,
    "MedSAM: outward, up to 20 px": outward(20),
    "PP-SAM: outward, up to 50 px": outward(50),
    "DN-DETR noise 0.1": box_noise(0.1),
    "DN-DETR noise 0.2": box_noise(0.2),
    "DN-DETR noise 0.4 (HQ-SAM, Stable-SAM)": box_noise(0.4),
    "DN-DETR noise 0.6": box_noise(0.6),
    "BREPS, jitter: translation, 30 %": translation(0.3),
}
"""docs/sources/robustness.md, C.3."""


def percentiles(moves: Moves, side: float) -> float:
    """Return the human percentile of the median box of objects of a side."""
    rng = keyed_generator("draw-human", round(side))
    logarithm = ASPECT * rng.standard_normal(BOXES) / 2
    sides = side * np.exp(np.stack([logarithm, -logarithm], axis=1))
    tight = np.concatenate([np.zeros_like(sides), sides - 1], axis=1)
    boxes = tight + np.array([-1, -1, 1, 1]) * moves(rng, sides)
    losses = [box_loss(*pair) for pair in zip(boxes, tight, strict=True)]
    return human_percentile(float(np.median(losses)))


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=Path("docs/guides/img/human.png"))
    file = parser.parse_args().file
    mpl.use("Agg")
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, moves in RECIPES.items():
        values = [percentiles(moves, side) for side in SIDES]
        axes.plot(SIDES, values, label=name, linestyle="-" if "px" in name else "--")
        at = "  ".join(f"{round(percentiles(moves, side)):>3}" for side in TABLE)
        print(f"{name:<46}{at}")  # noqa: T201
    axes.set_xscale("log")
    ticks = [20, 50, 100, 200, 400, 800]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(
        xlabel="side of the object (pixels of 1,024)",
        ylabel="human percentile of the median box",
        ylim=(0, 100),
    )
    axes.grid(color="#e4e4e4")
    figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
