import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from samrobust.errors import RecipeError
from samrobust.training.data import open_data
from samrobust.training.examples import ExampleDraws, Pool
from samrobust.training.recipe import DataSource, load_recipe, with_data
from samrobust.types import Dataset, Sample
from tests.trainings import tiny_recipe


class Recorder:
    """A data set that remembers what it was asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self.info = dataset.info
        self._dataset = dataset
        self.asked: set[str] = set()

    def ids(self) -> Sequence[str]:
        return self._dataset.ids()

    def __getitem__(self, sample_id: str) -> Sample:
        self.asked.add(sample_id)
        return self._dataset[sample_id]


def test_held_out_images_are_never_drawn() -> None:
    recipe = replace(tiny_recipe(), phases=tiny_recipe().phases[-1:])
    data = open_data(recipe, None)
    (pool,) = data.pools  # a weight of 0 is never drawn from
    part, whole = data.held_out
    assert set(pool.sample_ids) | set(part.sample_ids) == set(part.dataset.ids())
    assert not set(pool.sample_ids) & set(part.sample_ids)
    assert 1 <= len(part.sample_ids) <= 6
    assert list(whole.sample_ids) == list(whole.dataset.ids())
    recorder = Recorder(pool.dataset)
    draws = ExampleDraws(recipe, [Pool(recorder, pool.sample_ids, 1.0)], 64, stride=2)
    for step, slot in itertools.product(range(8), range(20)):
        _ = draws[step, slot]
    assert recorder.asked == set(pool.sample_ids)


def test_the_share_held_out_is_chosen_by_the_ids() -> None:
    recipe = tiny_recipe()
    chosen = []
    for held_out in (0.2, 0.5):
        row = DataSource("scenes", 1, split="1000", held_out=held_out)
        data = open_data(replace(recipe, data=(row,)), None)
        chosen.append(set(data.held_out[0].sample_ids))
        assert len(chosen[-1]) == pytest.approx(1000 * held_out, abs=50)
    assert chosen[0] < chosen[1]


def test_the_fingerprint_changes_with_the_data() -> None:
    recipe = tiny_recipe()
    other = replace(recipe, data=(replace(recipe.data[0], split="12x64x64"), recipe.data[1]))
    assert open_data(recipe, None).fingerprint == open_data(recipe, None).fingerprint
    assert open_data(recipe, None).fingerprint != open_data(other, None).fingerprint


def test_data_that_leaves_nothing_to_train_on_is_refused() -> None:
    row = DataSource("scenes", 1, split="3", held_out=1)
    with pytest.raises(RecipeError, match="'tiny': no image is left to train on, all are"):
        open_data(replace(tiny_recipe(), data=(row,)), None)


def test_folders_are_looked_for_below_the_root(photographs: Path) -> None:
    row = DataSource("coco", 1, folder="pennfudan", split="train", held_out=0.25)
    recipe = replace(tiny_recipe(), data=(row,))
    data = open_data(recipe, photographs)
    assert data.held_out[0].dataset.info.folder == "pennfudan"
    example = ExampleDraws(recipe, data.pools, 64, stride=2)[8, 0]
    assert max(example.image.shape) == 64
    with pytest.raises(RecipeError, match="needs --data-root: the folder that contains pennfudan"):
        open_data(recipe, None)


def test_a_group_is_drawn_image_by_image(photographs: Path) -> None:
    names = ["fss", "ecssd"]
    recipe = with_data(load_recipe("robust"), names, "", in_root=True)
    data = open_data(recipe, photographs / "hq_layout")
    assert [pool.weight for pool in data.pools] == [len(pool.sample_ids) for pool in data.pools]
    assert data.n_images == sum(pool.weight for pool in data.pools) > 10
