import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from samrobust.degradations.boxes import ExactBox
from samrobust.degradations.points import RandomPoints
from samrobust.errors import DatasetError
from samrobust.training import examples
from samrobust.training.examples import Example, ExampleDraws, Pool, load_examples
from samrobust.training.recipe import Augmentation, PromptSource, Recipe
from samrobust.types import FOREGROUND, Instance, Sample
from tests.conftest import MemoryDataset, rectangle
from tests.trainings import rectangles, same_example, tiny_recipe

SIDE = 64
BOXES = (PromptSource(1.0, "exact-box", ExactBox()),)
POINTS = (PromptSource(1.0, "random-points", RandomPoints(3)),)


def draws_of(recipe: Recipe, *datasets: MemoryDataset) -> ExampleDraws:
    pools = [Pool(dataset, dataset.ids(), 1.0) for dataset in datasets or (rectangles(),)]
    return ExampleDraws(recipe, pools, SIDE, stride=2)


def data_only(prompts: Sequence[PromptSource], **augmentation: float) -> Recipe:
    """Return a recipe of one phase with images, and of one kind of prompt."""
    recipe = tiny_recipe()
    how = replace(recipe.augmentation, **augmentation)  # type: ignore[arg-type]
    return replace(recipe, phases=recipe.phases[-1:], prompts=tuple(prompts), augmentation=how)


@pytest.fixture(scope="module")
def drawn() -> list[Example]:
    """Return all examples of the tiny recipe in their order."""
    draws = draws_of(tiny_recipe())
    return [draws[step, slot] for step in range(16) for slot in range(2)]


def test_an_example_depends_on_its_step_and_slot_alone(drawn: list[Example]) -> None:
    backwards = draws_of(tiny_recipe())
    for example in reversed(drawn):
        assert same_example(backwards[example.key], example)
    for example in drawn[::5]:
        assert same_example(draws_of(tiny_recipe())[example.key], example)


def test_examples_differ(drawn: list[Example]) -> None:
    keyless = [replace(example, key=(0, 0)) for example in drawn]
    assert not any(same_example(a, b) for a, b in itertools.combinations(keyless, 2))
    other_seed = draws_of(replace(tiny_recipe(), seed=6))
    assert not any(same_example(other_seed[example.key], example) for example in drawn)


def test_shares_of_two_processes_are_the_slots_of_one(drawn: list[Example]) -> None:
    recipe = tiny_recipe()
    draws = draws_of(recipe)
    shares = [
        list(load_examples(draws, recipe, first_step=5, workers=0, rank=rank, world=2))
        for rank in range(2)
    ]
    together = [
        example for step in zip(*shares, strict=True) for share in step for example in share
    ]
    assert [example.key for example in together] == [example.key for example in drawn[10:]]
    assert all(map(same_example, together, drawn[10:]))


def test_a_loading_process_changes_nothing(drawn: list[Example]) -> None:
    recipe = tiny_recipe()
    loaded = list(load_examples(draws_of(recipe), recipe, first_step=4, workers=1))
    assert [len(batch) for batch in loaded] == [2] * 12
    assert all(map(same_example, itertools.chain.from_iterable(loaded), drawn[8:]))


def test_an_example_has_the_frame_of_the_encoder_and_of_the_logits(drawn: list[Example]) -> None:
    for example in drawn:
        n = len(example.prompts[0])
        assert example.targets.shape == (n, SIDE // 2, SIDE // 2)
        assert example.targets.dtype == torch.float32
        assert 0 <= example.targets.min() < example.targets.max() < 1 + 1e-6
        assert example.image.shape == (3, *example.input_size_hw)
        assert example.image.dtype == torch.uint8
        assert max(example.input_size_hw) == SIDE
        height, width = (-(-extent // 2) for extent in example.input_size_hw)
        assert not example.targets[:, height:].any()
        assert not example.targets[:, :, width:].any()


def test_ellipses_have_no_image_and_all_of_their_objects(drawn: list[Example]) -> None:
    assert [bool(example.image.any()) for example in drawn] == [False] * 16 + [True] * 16
    assert {example.size_hw for example in drawn[:16]} == {(SIDE, SIDE)}
    assert {len(example.prompts[0]) for example in drawn[:16]} == {3}
    assert {len(example.prompts[0]) for example in drawn[16:]} == {1, 2}


def test_prompts_lie_inside_the_crop(drawn: list[Example]) -> None:
    structures = set()
    for example in drawn:
        last_xy = np.array(example.size_hw[::-1]) - 1
        structures.add(example.prompts[0].structure)
        points = [example.prompts[0].points]
        if example.prompts[0].boxes is not None:
            points.append(example.prompts[0].boxes.reshape(-1, 2, 2))
        for xy in points:
            assert (xy >= 0).all()
            assert (xy <= last_xy).all()
    assert structures == {(True, 0, False), (False, 3, False)}


def test_the_box_of_a_target_is_the_box_of_its_prompt() -> None:
    recipe = data_only(BOXES)
    draws = draws_of(recipe)
    for step, slot in itertools.product(range(8), range(2)):
        example = draws[step, slot]
        assert example.prompts[0].boxes is not None
        scale = np.array(example.input_size_hw[::-1]) / np.array(example.size_hw[::-1]) / 2
        for box, target in zip(example.prompts[0].boxes, example.targets.numpy(), strict=True):
            y, x = np.nonzero(target > 0.5)
            np.testing.assert_allclose((x.min(), y.min()), box[:2] * scale, atol=0.75)
            np.testing.assert_allclose((x.max() + 1, y.max() + 1), (box[2:] + 1) * scale, atol=0.75)


def test_points_lie_on_their_target() -> None:
    draws = draws_of(data_only(POINTS))
    on, total = 0, 0
    for step, slot in itertools.product(range(8), range(2)):
        example = draws[step, slot]
        assert (example.prompts[0].labels == FOREGROUND).all()
        scale = np.array(example.input_size_hw[::-1]) / np.array(example.size_hw[::-1]) / 2
        for points, target in zip(example.prompts[0].points, example.targets.numpy(), strict=True):
            x, y = ((points + 0.5) * scale).astype(int).T
            on += int(target[y, x].sum())
            total += len(points)
    assert on > 0.9 * total  # what is left is at the rim, where less than half of a place is


def test_a_mirrored_example_is_the_same_from_the_other_side() -> None:
    plain, mirrored = (
        draws_of(data_only(BOXES, flip=flip, colour=0.0, grey=0.0)) for flip in (0.0, 1.0)
    )
    for step in range(8):
        one, other = plain[step, 0], mirrored[step, 0]
        assert one.size_hw == other.size_hw
        boxes, flipped = one.prompts[0].boxes, other.prompts[0].boxes
        assert boxes is not None
        assert flipped is not None
        last = one.size_hw[1] - 1
        np.testing.assert_array_equal(flipped[:, [0, 2]], last - boxes[:, [2, 0]])
        np.testing.assert_array_equal(flipped[:, [1, 3]], boxes[:, [1, 3]])
        difference = one.image.flip(2).float() - other.image.float()
        assert difference.abs().max() <= 1  # resizing rounds


def test_too_small_objects_are_an_error_that_says_so() -> None:
    image = np.zeros((90, 133, 3), np.uint8)
    tiny = Instance("1", rectangle((90, 133), (60, 40, 66, 46)))  # 49 pixels, shrunk to fewer
    dataset = MemoryDataset([Sample("a", image, [tiny])])
    recipe = data_only(BOXES, least_crop=1.0)
    for workers in (0, 1):
        loaded = load_examples(draws_of(recipe, dataset), recipe, first_step=0, workers=workers)
        with pytest.raises(DatasetError) as caught:
            next(loaded)
        assert str(caught.value) == "no object of at least 48 pixels at side 64 in 100 images"


def test_a_recipe_says_how_small_an_object_may_be() -> None:
    image = np.zeros((90, 133, 3), np.uint8)
    tiny = Instance("1", rectangle((90, 133), (60, 40, 66, 46)))  # 11 pixels at side 64
    draws = draws_of(
        data_only(BOXES, least_crop=1.0, least_pixels=5),
        MemoryDataset([Sample("a", image, [tiny])]),
    )
    assert draws[0, 0].targets.any()


class CountedDataset(MemoryDataset):
    """A data set that counts how often it is read."""

    n_read = 0

    def __getitem__(self, sample_id: str) -> Sample:
        self.n_read += 1
        return super().__getitem__(sample_id)


def test_kept_images_are_read_once() -> None:
    dataset = CountedDataset([rectangles()[name] for name in rectangles().ids()])
    draws = draws_of(data_only(BOXES), dataset)
    for step in range(8):
        _ = draws[step, 0]
    assert dataset.n_read <= 3


@pytest.mark.parametrize("most_bytes", [0, 20_000, 40_000, 70_000])
def test_no_more_is_kept_than_allowed_and_it_changes_no_example(
    monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    recipe = data_only(BOXES)
    keys = [(step, slot) for step in range(8) for slot in range(2)]
    free = draws_of(recipe)
    wanted = [free[key] for key in keys]
    monkeypatch.setattr(examples, "CACHE_BYTES", most_bytes)
    bound = draws_of(recipe)
    most = 0
    for key, example in zip(keys, wanted, strict=True):
        assert same_example(bound[key], example)
        n_bytes = [sample.n_bytes for sample in bound._cache._samples.values()]
        assert sum(n_bytes) <= most_bytes
        assert bound._cache._bytes_left == most_bytes - sum(n_bytes)
        most = max(most, len(n_bytes))
    assert most == {0: 0, 20_000: 1, 40_000: 2, 70_000: 3}[most_bytes]


def test_data_sets_are_drawn_by_their_weights() -> None:
    recipe = data_only(BOXES)
    recipe = replace(recipe, phases=(replace(recipe.phases[0], steps=400),))
    wide, high = (MemoryDataset([rectangles()[name]]) for name in ("wide", "high"))
    whole = Augmentation(least_crop=1.0)
    pools = [Pool(wide, wide.ids(), 3.0), Pool(high, high.ids(), 1.0)]
    draws = ExampleDraws(replace(recipe, augmentation=whole), pools, SIDE, stride=2)
    of_wide = [draws[step, 0].size_hw[1] > 50 for step in range(400)]
    assert np.mean(of_wide) == pytest.approx(0.75, abs=0.07)


def test_each_image_gets_as_many_kinds_of_prompt_as_asked_for() -> None:
    recipe = data_only(tiny_recipe().prompts)
    several = replace(recipe, phases=(replace(recipe.phases[0], kinds=3),))
    drawn = [draws_of(several)[step, slot] for step in range(4) for slot in range(2)]
    for example in drawn:
        assert [len(prompts) for prompts in example.prompts] == [len(example.targets)] * 3
    assert len({tuple(each.structure for each in example.prompts) for example in drawn}) > 2


def test_masks_can_be_four_times_as_coarse_as_the_input() -> None:
    recipe = data_only(POINTS)
    fine = draws_of(recipe)[0, 0]
    pools = [Pool(rectangles(), rectangles().ids(), 1.0)]
    coarse = ExampleDraws(recipe, pools, SIDE, stride=4)[0, 0]
    assert (fine.stride, coarse.stride) == (2, 4)
    assert coarse.targets.shape[1:] == (fine.targets.shape[1] // 2,) * 2
    of_fine = fine.targets.unfold(1, 2, 2).unfold(2, 2, 2).mean(dim=(-2, -1))
    torch.testing.assert_close(coarse.targets, of_fine)
    np.testing.assert_array_equal(fine.prompts[0].points, coarse.prompts[0].points)


def test_pasted_objects_come_first_and_as_often_as_asked_for() -> None:
    recipe = data_only(BOXES)
    recipe = replace(recipe, phases=(replace(recipe.phases[0], steps=300),))
    shares = []
    for paste in (0.0, 0.5, 1.0):
        how = replace(recipe.augmentation, paste=paste)
        draws = draws_of(replace(recipe, augmentation=how))
        plain = draws_of(replace(recipe, augmentation=replace(how, paste=0.0)))
        examples = [(draws[step, 0], plain[step, 0]) for step in range(60)]
        assert all(1 <= len(one.targets) <= recipe.phases[0].objects for one, _ in examples)
        shares.append(np.mean([not torch.equal(a.image, b.image) for a, b in examples]))
    assert shares[0] == 0
    assert shares[1] == pytest.approx(0.5, abs=0.2)
    assert shares[2] > 0.95
