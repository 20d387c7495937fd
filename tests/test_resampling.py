from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from samrobust.report import statistics
from samrobust.report.statistics import (
    N_FLIPS,
    N_RESAMPLES,
    Tail,
    bootstrap_weights,
    holm,
    sign_flip_test,
)
from samrobust.types import Floats


def weights_of(n_images: int) -> Floats:
    return np.concatenate(list(bootstrap_weights(n_images, key="k")))


def test_a_bootstrap_sample_has_as_many_images_as_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = weights_of(7)
    assert whole.shape == (N_RESAMPLES, 7)
    assert (whole.sum(axis=1) == 7).all()
    monkeypatch.setattr(statistics, "_WEIGHTS_AT_ONCE", 7 * 33)
    np.testing.assert_array_equal(weights_of(7), whole)
    assert list(bootstrap_weights(1, key="k")) == []


def plain_tail(values: Floats) -> float:
    """Return the mean of the lowest tenth, the value at its end in part."""
    left, total = 0.1 * len(values), 0.0
    for value in np.sort(values):
        part = min(1.0, left)
        total, left = total + part * value, left - part
        if left <= 0:
            break
    return total / (0.1 * len(values))


@pytest.mark.parametrize("n_values", [1, 9, 10, 11, 20, 137])
def test_the_tail_is_the_mean_of_the_lowest_tenth(n_values: int) -> None:
    rng = np.random.default_rng(n_values)
    values, owners = rng.random(n_values), rng.integers(0, 4, n_values)
    assert Tail(values, owners, n_images=4).mean == pytest.approx(plain_tail(values), abs=1e-12)


@pytest.mark.parametrize(("n_images", "n_values"), [(5, 200), (60, 3000)])
def test_the_tail_of_a_resample_is_that_of_its_images(n_images: int, n_values: int) -> None:
    rng = np.random.default_rng(0)
    owners = rng.integers(0, n_images, n_values)
    values = np.clip(rng.normal(0.4 + 0.3 * (owners % 3), 0.2), 0, 1)
    weights = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=20).astype(float)
    found = Tail(values, owners, n_images=n_images).means(np.ascontiguousarray(weights.T))
    for row, value in zip(weights, found, strict=True):
        repeated = np.repeat(values, row[owners].astype(int))
        assert value == pytest.approx(plain_tail(repeated), abs=2e-3)


@pytest.mark.parametrize("n_images", [6, 12, 40])
def test_p_values_agree_with_those_of_scipy(n_images: int) -> None:
    rng = np.random.default_rng(n_images)
    contributions = rng.normal([0.0, 0.3, 0.9], 1.0, (n_images, 3))
    found = sign_flip_test(contributions, key="k")
    for column, p in zip(contributions.T, found, strict=True):
        result: Any = stats.permutation_test(
            (column,),
            np.mean,
            permutation_type="samples",
            n_resamples=20_000,
            vectorized=False,
            rng=np.random.default_rng(1),
        )
        assert p == pytest.approx(result.pvalue, abs=0.02 if n_images > 12 else 1e-12)


def test_no_difference_has_p_1_and_the_smallest_p_is_not_0() -> None:
    assert sign_flip_test(np.zeros((50, 1)), key="k") == [1.0]
    assert sign_flip_test(np.ones((50, 1)), key="k") == [pytest.approx(1 / N_FLIPS)]
    assert sign_flip_test(np.ones((1, 1)), key="k") == [1.0]


def test_flips_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    contributions = np.random.default_rng(0).normal(0.2, 1, (50, 4))
    whole = sign_flip_test(contributions, key="k")
    assert (whole > 1 / N_FLIPS).all()
    monkeypatch.setattr(statistics, "_WEIGHTS_AT_ONCE", 50 * 1000)
    np.testing.assert_array_equal(sign_flip_test(contributions, key="k"), whole)


def test_holm_agrees_with_the_example_of_r() -> None:
    # as R says of "p.adjust" with "holm"
    found = holm(np.array([0.01, 0.02, 0.03, 0.04, 0.05]))
    np.testing.assert_allclose(found, [0.05, 0.08, 0.09, 0.09, 0.09])


@given(hnp.arrays(np.float64, st.integers(1, 9), elements=st.floats(0, 1)))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p: Floats) -> None:
    found = holm(p)
    assert (found >= p).all()
    assert (found <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(found[np.argsort(p, kind="stable")]) >= 0).all()
