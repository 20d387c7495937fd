from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from samrobust.degradations.clicks import Click
from samrobust.errors import RecipeError
from samrobust.training.examples import Example
from samrobust.training.losses import count_corrections, with_corrections
from samrobust.training.recipe import CorrectiveClicks, Recipe, describe_recipe, load_recipe
from samrobust.types import BACKGROUND, FOREGROUND, PromptBatch
from tests.conftest import blobs
from tests.trainings import tiny_recipe

GRID = 32
FRAMES = [
    ((301, 410), (47, 64)),
    ((410, 301), (64, 47)),
    ((200, 200), (64, 64)),
    ((91, 320), (18, 64)),
]
"""Sizes of images, and theirs in an encoder of side 64."""


def example(
    size_hw: tuple[int, int], input_hw: tuple[int, int], *, n: int = 4, boxes: bool = True
) -> Example:
    """Return N prompts with targets of blocks, none in the padding."""
    rng = np.random.default_rng(0)
    height, width = (-(-extent // 2) for extent in input_hw)
    targets = torch.zeros(n, GRID, GRID, dtype=torch.bool)
    for target in targets:
        target[:height, :width] = torch.from_numpy(blobs(rng, (height, width)))
    points = rng.random((n, 2, 2)).astype(np.float32)
    labels = np.ones((n, 2), np.int32)
    xyxy = np.tile(np.array([1, 2, 30, 40], np.float32), (n, 1)) if boxes else None
    image = torch.zeros(3, *input_hw, dtype=torch.uint8)
    prompts = PromptBatch(xyxy, points, labels)
    return Example(image, size_hw, input_hw, (prompts,), prompts, targets, 2, (7, 1), "a")


def wrong_logits(example: Example) -> Tensor:
    """Return answers with some wrong places, and others in the padding."""
    rng = torch.Generator().manual_seed(0)
    flipped = torch.rand(example.targets.shape, generator=rng) < 0.05
    padding = torch.ones_like(example.targets)
    padding[:, : -(-example.input_size_hw[0] // 2), : -(-example.input_size_hw[1] // 2)] = False
    return 4 * ((example.targets ^ flipped) | padding).float() - 2


def corrected(example: Example, logits: Tensor) -> PromptBatch:
    """Return the corrected prompts of an example."""
    return with_corrections(example, example.prompts[0], logits, np.random.default_rng(3))


def places(example: Example, prompts: PromptBatch) -> list[tuple[int, int]]:
    """Return where in the grid the last points are, yx."""
    scale = np.array(example.input_size_hw[::-1]) / np.array(example.size_hw[::-1])
    xy = np.floor((prompts.points[:, -1] + 0.5) * scale / 2).astype(int)
    return [(y, x) for x, y in xy.tolist()]


@pytest.mark.parametrize(("size_hw", "input_hw"), FRAMES)
def test_the_new_point_says_where_the_answer_is_wrong(
    size_hw: tuple[int, int], input_hw: tuple[int, int]
) -> None:
    given = example(size_hw, input_hw, n=20)
    logits = wrong_logits(given)
    found = corrected(given, logits)
    labels = found.labels[:, -1]
    for n, (y, x) in enumerate(places(given, found)):
        assert bool(logits[n, y, x] > 0) != bool(given.targets[n, y, x])
        assert labels[n] == (FOREGROUND if given.targets[n, y, x] else BACKGROUND)
    assert set(labels.tolist()) == {FOREGROUND, BACKGROUND}
    assert (found.points >= 0).all()
    assert (found.points <= np.array(size_hw[::-1]) - 1).all()


def test_the_new_point_is_in_the_middle_of_its_place() -> None:
    given = example((300, 400), (48, 64), n=20)
    found = corrected(given, wrong_logits(given))
    in_grid = (found.points[:, -1] + 0.5) * (64 / 400) / 2
    np.testing.assert_allclose(in_grid % 1, 0.5, atol=1e-4)


def test_the_prompts_themselves_stay() -> None:
    for boxes in (True, False):
        given = example(*FRAMES[0], boxes=boxes)
        found = corrected(given, wrong_logits(given))
        assert found.structure == (boxes, 3, False)
        np.testing.assert_array_equal(found.points[:, :2], given.prompts[0].points)
        np.testing.assert_array_equal(found.labels[:, :2], given.prompts[0].labels)
        if boxes:
            assert found.boxes is given.prompts[0].boxes


@pytest.mark.parametrize(("size_hw", "input_hw"), FRAMES)
def test_where_nothing_is_wrong_the_point_lies_on_the_object(
    size_hw: tuple[int, int], input_hw: tuple[int, int]
) -> None:
    given = example(size_hw, input_hw, n=20)
    found = corrected(given, 4 * given.targets.float() - 2)
    assert (found.labels[:, -1] == FOREGROUND).all()
    assert all(given.targets[n, y, x] for n, (y, x) in enumerate(places(given, found)))
    assert len(set(places(given, found))) > 10


def test_an_object_of_which_nothing_is_left_gets_a_point_outside() -> None:
    given = example(*FRAMES[0])
    given.targets[1] = False
    logits = 4 * given.targets.float() - 2
    found = corrected(given, logits)
    assert found.labels[:, -1].tolist() == [FOREGROUND, BACKGROUND, FOREGROUND, FOREGROUND]


def test_points_of_small_images_stay_inside() -> None:
    given = example((10, 16), (40, 64), n=20)  # enlarged: a place is half of a pixel
    found = corrected(given, wrong_logits(given))
    last = found.points[:, -1]
    assert (last >= 0).all()
    assert (last <= (15, 9)).all()
    for n, (y, x) in enumerate(places(given, found)):
        near = given.targets[n, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        wanted = bool(found.labels[n, -1] == FOREGROUND)
        assert bool((near == wanted).any())


def test_points_depend_on_the_generator_alone() -> None:
    given = example(*FRAMES[0])
    logits = wrong_logits(given)
    first, again = corrected(given, logits), corrected(example(*FRAMES[0]), logits)
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(first.labels, again.labels)
    other = with_corrections(given, given.prompts[0], logits, np.random.default_rng(4))
    assert not np.array_equal(first.points, other.points)


def test_where_masks_are_four_times_as_coarse_the_point_is_in_its_place_too() -> None:
    given = example((333, 400), (54, 64), n=20)
    coarse = replace(given, targets=given.targets[:, ::2, ::2], stride=4)
    logits = wrong_logits(given)[:, ::2, ::2]
    found = corrected(coarse, logits)
    xy = (found.points[:, -1] + 0.5) * (np.array([64, 54]) / np.array([400, 333])) / 4
    for n, (x, y) in enumerate(np.floor(xy).astype(int).tolist()):
        assert bool(logits[n, y, x] > 0) != bool(coarse.targets[n, y, x])


def _share(recipe: Recipe, corrections: float) -> float:
    chosen = replace(recipe, corrections=corrections)
    return float(np.mean([count_corrections(chosen, step) for step in range(2000)]))


def test_the_share_of_corrected_steps_is_that_of_the_recipe() -> None:
    recipe = tiny_recipe()
    assert _share(recipe, 0.0) == 0
    assert _share(recipe, 1.0) == 1
    assert _share(recipe, 0.3) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize(("size_hw", "input_hw"), FRAMES)
def test_clicks_go_where_a_conversation_puts_them(
    size_hw: tuple[int, int], input_hw: tuple[int, int]
) -> None:
    given = example(size_hw, input_hw)
    logits, rng = wrong_logits(given), np.random.default_rng(0)
    height, width = (-(-extent // 2) for extent in input_hw)
    prompts = given.prompts[0]
    clicked: list[list[int]] = [[] for _ in range(4)]
    for _ in range(3):
        prompts = with_corrections(given, prompts, logits, rng, Click())
        for n, (y, x) in enumerate(places(given, prompts)):
            target = given.targets[n, :height, :width].numpy()
            answer = (logits[n, :height, :width] > 0).numpy()
            before = (prompts.points[n, :2] + 0.5) * np.array(input_hw[::-1]) / size_hw[::-1] / 2
            at_first = [int(v) * width + int(u) for u, v in np.floor(before)]
            wanted = Click().correct(target, answer, [*at_first, *clicked[n]], rng)
            assert wanted == (y * width + x, int(prompts.labels[n, -1]))
            clicked[n].append(y * width + x)


def test_a_recipe_says_how_many_clicks_there_are_at_most(tmp_path: Path) -> None:
    file = tmp_path / "clicks.toml"
    file.write_text('corrections = 0.5\n[clicks]\nmost = 3\npolicy = "sampled"\ngamma = 2.0\n')
    recipe = load_recipe("robust", str(file))
    assert recipe.clicks == CorrectiveClicks(3, "sampled", 2.0)
    counts = [count_corrections(recipe, step) for step in range(2000)]
    shares = np.bincount(counts) / len(counts)
    assert shares == pytest.approx([0.5, 1 / 6, 1 / 6, 1 / 6], abs=0.04)
    assert describe_recipe(recipe)["clicks"] == {"most": 3, "policy": "sampled", "gamma": 2.0}
    assert "clicks" not in describe_recipe(load_recipe("robust"))
    file.write_text("[clicks]\ngamma = 2.0\n")
    with pytest.raises(RecipeError, match="policy 'deepest' has no gamma"):
        load_recipe("robust", str(file))
