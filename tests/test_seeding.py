import numpy as np
import pytest

from samrobust.seeding import combined_hash, keyed_generator, prompt_hash, uniform_indices
from samrobust.types import Prompt

FIRST_NUMBERS = [0.18443758038728408, 0.7527991135876295, 0.6280183910844114]


def test_the_published_key_never_changes() -> None:
    """These numbers are part of every published result: a change needs a new KEY_VERSION."""
    rng = keyed_generator(0, "coco/val2017", "139", "1640", "box-noise", 3)
    assert rng.random(3).tolist() == pytest.approx(FIRST_NUMBERS, abs=0)


def test_every_part_of_a_key_counts_and_parts_do_not_run_together() -> None:
    keys: list[tuple[str | int, ...]] = [
        (0, "a", "b"),
        (1, "a", "b"),
        (0, "ab", ""),
        (0, "a", "c"),
        ("0", "a", "b"),
    ]
    assert len({keyed_generator(*key).random() for key in keys}) == len(keys)


def test_indices_are_nested_and_differ_as_long_as_there_are_any_left() -> None:
    for n, count in ((5, 9), (100, 12), (1, 3)):
        longest = uniform_indices(keyed_generator(n), n, count)
        for k in range(1, count):
            assert uniform_indices(keyed_generator(n), n, k) == longest[:k]
        assert len(set(longest)) == min(n, count)
        assert all(0 <= index < n for index in longest)


def test_indices_are_uniform() -> None:
    drawn = [uniform_indices(keyed_generator(trial), 4, 2)[1] for trial in range(2000)]
    assert np.bincount(drawn, minlength=4) == pytest.approx([500] * 4, abs=70)


def test_hashes_tell_boxes_points_and_orders_apart() -> None:
    box = Prompt(box=np.array([0, 0, 1, 1], np.float32))
    near = Prompt(box=np.nextafter(np.array([0, 0, 1, 1], np.float32), np.float32(2)))
    points = np.array([[0, 0], [1, 1]], np.float32)
    point = Prompt(points=points, labels=np.ones(2, np.int32))
    swapped = Prompt(points=points[::-1], labels=np.ones(2, np.int32))
    negative = Prompt(points=points, labels=np.array([1, 0], np.int32))
    hashes = [prompt_hash(prompt) for prompt in (box, near, point, swapped, negative)]
    assert len(set(hashes)) == 5
    assert combined_hash(hashes) != combined_hash(hashes[::-1])
