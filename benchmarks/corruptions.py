"""Corruptions beside `imagecorruptions` 1.1.2 on the same random numbers, and their time.

pip install imagecorruptions scikit-image; python -m benchmarks.corruptions --image photo.jpg

That package does not run with NumPy 2 and scikit-image 0.26 as it is: names that these no longer
have are put back before it is imported.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import scipy.ndimage
import typer
from PIL import Image as PillowImage

from samrobust.datasets.images import read_image
from samrobust.degradations import CORRUPTIONS
from samrobust.protocol import build_corruption
from samrobust.types import Image

SEVERITIES = (1, 3, 5)
SEED = 7
PILLOW = ("jpeg-compression", "pixelate")
"""Those that take an image of Pillow there."""


def main(image: Annotated[Path, typer.Option(help="Photograph.")]) -> None:
    """Print a row per corruption: mean change, mean difference from the package, and seconds."""
    reference = _reference()
    photograph = read_image(image)
    print(f"{image.name}: {photograph.shape[1]}x{photograph.shape[0]}")
    print("| corruption | severity | change | difference | largest | ms | ms there |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in CORRUPTIONS.names():
        for severity in SEVERITIES:
            corruption = build_corruption(name, {"severity": severity})
            ours, ms = _timed(partial(corruption, photograph, np.random.default_rng(SEED)))
            theirs, ms_there = _timed(partial(_by_reference, reference, name, severity, photograph))
            change = np.abs(theirs.astype(float) - photograph).mean()
            difference = np.abs(ours.astype(float) - theirs)
            print(
                f"| {name} | {severity} | {change:.1f} | {difference.mean():.3f} "
                f"| {difference.max():.0f} | {ms:.0f} | {ms_there:.0f} |"
            )


def _timed(make: Callable[[], Image]) -> tuple[Image, float]:
    started = time.perf_counter()
    made = make()
    return made, 1000 * (time.perf_counter() - started)


def _by_reference(reference: Any, name: str, severity: int, image: Image) -> Image:  # noqa: ANN401
    """Return the package's image, its random numbers drawn from our generator in our dtypes."""
    rng = np.random.default_rng(SEED)

    def normal(loc: float = 0, scale: float = 1, size: tuple[int, ...] = ()) -> object:
        return loc + scale * rng.standard_normal(size, np.float32)

    def integers(low: int, high: int | None = None, size: tuple[int, ...] | None = None) -> object:
        return rng.integers(0, low, size) if high is None else rng.integers(low, high, size)

    drawn = {"normal": normal, "poisson": rng.poisson, "uniform": rng.uniform, "randint": integers}
    before = {key: getattr(np.random, key) for key in drawn}
    for key, function in drawn.items():
        setattr(np.random, key, function)
    impulse = import_module("skimage.util.noise").random_noise
    reference.sk.util.random_noise = partial(impulse, rng=rng)
    given = PillowImage.fromarray(image) if name in PILLOW else image
    try:
        found = getattr(reference, name.replace("-", "_"))(given, severity)
        return np.asarray(found).astype(np.uint8)
    finally:
        for key, function in before.items():
            setattr(np.random, key, function)


def _reference() -> Any:  # noqa: ANN401
    """Return the package's functions, with what they miss put back."""
    resources = ModuleType("pkg_resources")
    interpolation = ModuleType("scipy.ndimage.interpolation")
    vars(resources)["resource_filename"] = _beside
    vars(interpolation)["map_coordinates"] = scipy.ndimage.map_coordinates
    sys.modules |= {"pkg_resources": resources, "scipy.ndimage.interpolation": interpolation}
    vars(np)["float_"] = np.float64
    reference: Any = import_module("imagecorruptions.corruptions")
    blur = import_module("skimage.filters").gaussian

    def gaussian(image: object, *, multichannel: bool = False, **options: object) -> object:
        return blur(image, channel_axis=-1 if multichannel else None, **options)

    def positional(image: object, sigma: object = 1, **options: object) -> object:
        return gaussian(image, sigma=sigma, **options)  # type: ignore[arg-type]

    reference.gaussian = positional
    return reference


def _beside(module: str, name: str) -> str:
    return str(Path(str(sys.modules[module].__file__)).parent / name)


if __name__ == "__main__":
    typer.run(main)
