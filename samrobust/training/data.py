"""From the data rows of a recipe to images for training and images for validation."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from samrobust.datasets import open_dataset
from samrobust.errors import RecipeError
from samrobust.seeding import keyed_generator
from samrobust.training.examples import Pool
from samrobust.training.recipe import Recipe
from samrobust.types import Dataset


@dataclass(frozen=True)
class TrainingData:
    """What a recipe's data rows stand for.

    Attributes:
        pools: what is trained on.
        held_out: what is validated on.
        fingerprint: a hash that changes with any data set or split.
    """

    pools: tuple[Pool, ...]
    held_out: tuple[Pool, ...]
    fingerprint: str

    @property
    def n_images(self) -> int:
        """Return how many images are trained on."""
        return sum(len(pool.sample_ids) for pool in self.pools)


def open_data(recipe: Recipe, root: Path | None) -> TrainingData:
    """Return the data of a recipe.

    Args:
        recipe: its rows.
        root: the folder that holds their folders.

    Raises:
        RecipeError: a row needs a root and there is none, or nothing is left to train on.
        DatasetError: a data set is not there.
    """
    pools, held_out, keys = [], [], []
    for row in recipe.data:
        if row.folder and root is None:
            folders = ", ".join(each.folder for each in recipe.data if each.folder)
            raise RecipeError(
                f"recipe '{recipe.name}' needs --data-root: the folder that holds {folders}"
            )
        where = root / row.folder if root and row.folder else None
        dataset = open_dataset(row.dataset, root=where, split=row.split)
        trained: list[str] = []
        apart: list[str] = []
        for sample_id in dataset.ids():
            held = _is_held_out(dataset, sample_id, row.held_out)
            (apart if held else trained).append(sample_id)
        if row.weight and trained:
            weight = row.weight * (len(trained) if row.per_image else 1)
            pools.append(Pool(dataset, trained, weight))
        if apart:
            held_out.append(Pool(dataset, apart))
        keys.append(f"{dataset.info.key} {dataset.info.fingerprint}")
    if not pools:
        raise RecipeError(f"recipe '{recipe.name}': everything is held out, nothing to train on")
    fingerprint = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
    return TrainingData(tuple(pools), tuple(held_out), fingerprint)


def _is_held_out(dataset: Dataset, sample_id: str, share: float) -> bool:
    return bool(keyed_generator("held-out", dataset.info.key, sample_id).random() < share)
