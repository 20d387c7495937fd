"""Masks without images: ellipses, from which a decoder learns where boxes and points are."""

import math

import numpy as np

from samrobust.types import Instance, Sample

SIDES = (0.06, 1.0)
"""Least and greatest axis, as a fraction of the image's side; log-uniform."""


def draw_ellipses(rng: np.random.Generator, count: int, side: int) -> Sample:
    """Return a black image of a square side with ellipses that know nothing of each other.

    Axes are upright; parts outside the image are cut off.
    """
    y, x = np.indices((side, side))
    instances: list[Instance] = []
    while len(instances) < count:
        radii = side / 2 * np.exp(rng.uniform(math.log(SIDES[0]), math.log(SIDES[1]), 2))
        centre = rng.uniform(0, side, 2)
        mask = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1]) < 1
        if mask.sum() >= math.pi:  # less than a pixel's radius says nothing
            instances.append(Instance(str(len(instances)), mask))
    return Sample("ellipses", np.zeros((side, side, 3), np.uint8), instances)
