"""Classes of objects: by size as COCO's, and by how thin they are."""

import numpy as np
import numpy.typing as npt
import pandas as pd

SIZES = {"small": 32**2, "medium": 96**2, "large": np.inf}
"""Class -> the area, in pixels of the original image, that it stays below: COCO's."""
THINNESS = {"compact": 25.0, "winding": 60.0, "thin": np.inf}
"""Class -> the perimeter^2 / area that it stays below.

A disc has 4 pi = 12.6, a square 16, a bar of 1 x 4 25, a bar of 1 x 13 60."""
KINDS = {"size": SIZES, "thinness": THINNESS}


def thinness(objects: pd.DataFrame) -> "pd.Series[float]":
    """Return perimeter^2 / area of each object; at least about 4 pi; NaN where it is not known."""
    return objects["perimeter"] ** 2 / objects["area"]


def classes_of(objects: pd.DataFrame) -> dict[tuple[str, str], npt.NDArray[np.bool_]]:
    """Return which objects are of each class that has any, as (kind, class) -> (O,) bool.

    Args:
        objects: with `area` and `perimeter`; an object that has none is in no class.
    """
    found = {}
    for kind, values in (("size", objects["area"]), ("thinness", thinness(objects))):
        at_least = 0.0
        for name, below in KINDS[kind].items():
            chosen = ((values >= at_least) & (values < below)).to_numpy()
            if chosen.any():
                found[kind, name] = chosen
            at_least = below
    return found
