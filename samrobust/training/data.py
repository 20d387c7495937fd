"""Open the data sets of a recipe, and split them into training and held-out images."""

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
    """The data of a recipe.

    Attributes:
        pools: images to train on.
        held_out: images to validate on.
        fingerprint: a hash that changes with any data set or split.
    """

    pools: tuple[Pool, ...]
    held_out: tuple[Pool, ...]
    fingerprint: str

    @property
    def n_images(self) -> int:
        """Return the number of images to train on."""
        return sum(len(pool.sample_ids) for pool in self.pools)


def open_data(recipe: Recipe, root: Path | None) -> TrainingData:
    """Return the data of a recipe.

    Args:
        recipe: the recipe.
        root: folder that contains the folders of its data sets.

    Raises:
        RecipeError: a data set needs a root and there is none, or no image is left to train on.
        DatasetError: a data set is missing.
    """
    pools, held_out, keys = [], [], []
    for row in recipe.data:
        if row.folder and root is None:
            named = dict.fromkeys(source.folder for source in recipe.data if source.folder)
            folders = ", ".join(named)
            raise RecipeError(
                f"recipe '{recipe.name}' needs --data-root: the folder that contains {folders}"
            )
        dataset_root = root / row.folder if root and row.folder else None
        dataset = open_dataset(row.dataset, root=dataset_root, split=row.split)
        training_ids: list[str] = []
        held_out_ids: list[str] = []
        for sample_id in dataset.ids():
            is_held_out = _is_held_out(dataset, sample_id, row.held_out)
            (held_out_ids if is_held_out else training_ids).append(sample_id)
        if row.weight and training_ids:
            weight = row.weight * (len(training_ids) if row.per_image else 1)
            pools.append(Pool(dataset, training_ids, weight))
        if held_out_ids:
            held_out.append(Pool(dataset, held_out_ids))
        keys.append(f"{dataset.info.key} {dataset.info.fingerprint}")
    if not pools:
        raise RecipeError(f"recipe '{recipe.name}': no image is left to train on, all are held out")
    fingerprint = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
    return TrainingData(tuple(pools), tuple(held_out), fingerprint)


def _is_held_out(dataset: Dataset, sample_id: str, share: float) -> bool:
    return bool(keyed_generator("held-out", dataset.info.key, sample_id).random() < share)
