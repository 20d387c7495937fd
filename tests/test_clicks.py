"""Clicks against a simulator that is written from RITM's definition, in the slowest plain way."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from samrobust.degradations.clicks import Click
from samrobust.degradations.points import CentrePoint
from samrobust.types import Mask
from tests.conftest import blobs, rectangle

SIZE_HW = (37, 53)


def ritms_click(target: Mask, answer: Mask, clicked: list[int]) -> tuple[int, int] | None:
    """Return the next click by RITM's rule, from SciPy's distances of the whole padded image."""
    depths = []
    for region in (target & ~answer, ~target & answer):
        depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        depth.flat[clicked] = 0
        depths.append(np.round(depth**2).astype(int))
    positive = depths[0].max() > depths[1].max()
    depth = depths[0] if positive else depths[1]
    if depth.max() == 0:
        return None
    ys, xs = np.where(depth == depth.max())
    return int(ys[0]) * target.shape[1] + int(xs[0]), int(positive)


def random_object(rng: np.random.Generator) -> tuple[Mask, Mask]:
    """Return a target of random blocks, and an answer that is wrong at some of them."""
    target = blobs(rng, SIZE_HW)
    answer = target.copy()
    for _ in range(3):
        y, x = rng.integers(0, SIZE_HW[0]), rng.integers(0, SIZE_HW[1])
        answer[y : y + rng.integers(1, 15), x : x + rng.integers(1, 15)] ^= True
    return target, answer


def test_clicks_are_those_of_a_simulator_written_from_ritms_definition() -> None:
    rng = np.random.default_rng(0)
    labels = []
    for _ in range(200):
        target, answer = random_object(rng)
        clicked: list[int] = []
        for _ in range(6):
            wanted = ritms_click(target, answer, clicked)
            assert Click().correct(target, answer, clicked, rng) == wanted
            if wanted is None:
                break
            labels.append(wanted[1])
            clicked.append(wanted[0])
            y, x = divmod(wanted[0], SIZE_HW[1])  # a segmenter that mends a square about the click
            about = np.s_[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            answer[about] = target[about]
    assert 100 < sum(labels) < len(labels) - 100


def test_the_first_click_is_the_centre_of_the_object() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        mask = blobs(rng, SIZE_HW)
        click = Click()(mask, rng)
        assert np.array_equal(click.points, CentrePoint()(mask, rng).points)
        assert click.labels.tolist() == [1]


def test_a_tie_goes_to_the_surplus_pixels() -> None:
    target, answer = rectangle(SIZE_HW, (2, 2, 8, 8)), rectangle(SIZE_HW, (30, 20, 36, 26))
    rng = np.random.default_rng(0)
    assert Click().correct(target, answer, [], rng) == (23 * SIZE_HW[1] + 33, 0)
    larger = rectangle(SIZE_HW, (2, 2, 10, 10))
    assert Click().correct(larger, answer, [], rng) == (6 * SIZE_HW[1] + 6, 1)


@pytest.mark.parametrize("policy", [Click(), Click("sampled"), Click("groups", group=3)])
def test_nothing_is_clicked_where_nothing_is_wrong_or_all_of_it_was_clicked(policy: Click) -> None:
    rng = np.random.default_rng(0)
    target = rectangle(SIZE_HW, (0, 0, 3, 3))
    assert policy.correct(target, target, [], rng) is None
    answer = target.copy()
    answer[0, 0] = False
    assert policy.correct(target, answer, [], rng) == (0, 1)
    assert policy.correct(target, answer, [0], rng) is None


def test_every_policy_clicks_in_the_larger_region_at_the_border_too() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        target, answer = random_object(rng)
        deepest = Click().correct(target, answer, [], rng)
        assert deepest is not None
        region = (target & ~answer) if deepest[1] else (answer & ~target)
        for policy in (Click("sampled", 2.0), Click("groups", group=1), Click("groups", group=10)):
            found = policy.correct(target, answer, [deepest[0]], rng)
            if found is not None and found[1] == deepest[1]:
                assert region.flat[found[0]]
                assert found[0] != deepest[0]


def test_samples_follow_the_power_of_the_depth() -> None:
    mask = rectangle((9, 21), (1, 1, 17, 5))
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    rng = np.random.default_rng(0)
    n = 4000
    for gamma in (0.0, 1.0, 3.0):
        places = [Click("sampled", gamma)(mask, rng).points[0].astype(int) for _ in range(n)]
        counts = np.zeros(mask.shape)
        for x, y in places:
            counts[y, x] += 1
        wanted = np.where(mask, depth**gamma, 0)
        wanted *= n / wanted.sum()
        pixels = mask & (wanted > 5)
        chi_squared = ((counts - wanted)[pixels] ** 2 / wanted[pixels]).mean()
        assert counts[~mask].sum() == 0
        assert 0.5 < chi_squared < 1.6


def test_groups_are_tenths_of_the_probability_the_likeliest_last() -> None:
    mask = rectangle((31, 31), (2, 2, 28, 28))
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    mass = np.cumsum(np.sort(depth[mask])) / depth[mask].sum()
    ordered = np.sort(depth[mask])
    rng = np.random.default_rng(0)
    reached = []
    for group in range(1, 11):
        points = [Click("groups", group=group)(mask, rng).points[0].astype(int) for _ in range(100)]
        depths = [depth[y, x] for x, y in points]
        low, high = np.searchsorted(mass, [(group - 1) / 10, group / 10 - 1e-9])
        assert min(depths) >= ordered[low]
        assert max(depths) <= ordered[min(high, len(ordered) - 1)]
        reached.append(np.mean(depths))
    assert all(one < other for one, other in pairwise(reached))


def test_an_object_of_one_pixel_is_clicked_by_every_group() -> None:
    mask = rectangle(SIZE_HW, (52, 36, 52, 36))
    for group in range(1, 11):
        found = Click("groups", group=group)(mask, np.random.default_rng(group))
        assert found.points.tolist() == [[52, 36]]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (("deepest", 2.0), "policy 'deepest' has no gamma, got 2.0"),
        (("sampled", -1.0), "gamma must be a number from 0 to 100, got -1.0"),
        (("sampled", float("nan")), "gamma must be a number from 0 to 100, got nan"),
        (("groups", 1.0, 11), "policy 'groups' needs a group from 1 to 10, got 11"),
        (("groups",), "policy 'groups' needs a group from 1 to 10, got 0"),
        (("sampled", 1.0, 2), "policy 'sampled' has no group, got 2"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    parameters: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message.replace("'", ".")):
        Click(*parameters)  # type: ignore[arg-type]
