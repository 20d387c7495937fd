"""What benchmarks run on: a drawn photograph with objects, and a SAM of random weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from segment_anything.build_sam import sam_model_registry

from samrobust.datasets.scenes import draw_scene
from samrobust.types import DatasetInfo, Instance, Mask, Sample

DRAWN_WIDTH = 1024
"""Pixels; a scene is drawn at most this wide and enlarged: drawing is not what is measured."""


class DrawnPhotograph:
    """A data set of one drawn photograph with elliptic objects, under one or more ids.

    Args:
        width: of the photograph, in pixels.
        height: likewise.
        n_objects: how many ellipses, of a tenth to a third of the sides.
        n_images: ids; the prompts of each are others.
    """

    def __init__(self, width: int, height: int, n_objects: int, n_images: int = 1) -> None:
        self.info = DatasetInfo("photograph", f"{width}x{height}", "1")
        factor = max(1, width // DRAWN_WIDTH)
        scene = draw_scene(0, width=width // factor, height=height // factor).image
        image = scene.repeat(factor, axis=0).repeat(factor, axis=1)
        rng = np.random.default_rng(n_objects)
        instances = [
            Instance(str(number), _ellipse(rng, image.shape[0], image.shape[1]))
            for number in range(n_objects)
        ]
        self._sample = Sample("photograph", image, instances)
        self._ids = [f"photograph-{number}" for number in range(n_images)]

    def ids(self) -> list[str]:
        """Return the ids."""
        return self._ids

    def __getitem__(self, sample_id: str) -> Sample:
        """Return the photograph under an id."""
        return replace(self._sample, sample_id=sample_id)


def save_random_sam(variant: str, path: Path, device: str = "cpu") -> None:
    """Save a SAM with random weights, spread so that masks are neither empty nor full.

    Speed does not depend on the weights, as long as there is something to score. A GPU draws them
    faster, and others.
    """
    torch.manual_seed(0)
    with torch.device(device):
        sam = sam_model_registry[variant]()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in sam.mask_decoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.5)
    torch.save(sam.state_dict(), path)


def _ellipse(rng: np.random.Generator, height: int, width: int) -> Mask:
    size = np.array([height, width])
    half = size * rng.uniform(0.05, 0.17, 2)
    centre = rng.uniform(half, size - half)
    y, x = np.ogrid[:height, :width]
    inside: Mask = ((y - centre[0]) / half[0]) ** 2 + ((x - centre[1]) / half[1]) ** 2 <= 1
    return inside
