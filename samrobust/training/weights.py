"""Files that training writes: weights with what they were made with, whole or not at all."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save as serialize
from torch import Tensor

from samrobust import __version__
from samrobust.errors import TrainingError
from samrobust.training.recipe import Recipe
from samrobust.training.recipe_files import describe_recipe
from samrobust.whole import write_whole

VERSIONED = ("numpy", "safetensors", "segment-anything", "torch")


def save_weights(
    path: Path,
    state: Mapping[str, Tensor],
    recipe: Recipe,
    *,
    dtype: torch.dtype = torch.float16,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as safetensors, with recipe and versions in the header.

    Args:
        path: of the file.
        state: names and tensors.
        recipe: that made them.
        dtype: of floating-point tensors in the file.
        about: more for the header.

    Raises:
        TrainingError: it cannot be written.
    """
    tensors = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in state.items()
    }
    versions = {"python": platform.python_version(), "samrobust": __version__}
    versions |= {package: version(package) for package in VERSIONED}
    header = {
        "recipe": json.dumps(describe_recipe(recipe), sort_keys=True),
        "versions": json.dumps(versions, sort_keys=True),
        **(about or {}),
    }
    try:
        write_whole(path, serialize(tensors, metadata=header))
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error
