from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from samrobust.errors import RunError
from samrobust.report.compare import compare, comparison_tables
from samrobust.runs.store import Run
from tests.runs import SAM, STABLE, MadeUp, described

NOISY = described("noisy-box", conditions=("exact-box", "box-noise-0.2", "box-noise-0.4"))
RUN = MadeUp(protocol=NOISY, n_samples=30, accuracy=0.6)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("runs")
    better = RUN.but(segmenter=STABLE, accuracy=0.9)
    return RUN.store(folder), better.store(folder)


def object_means(run: Run) -> "pd.Series[float]":
    scores = run.scores[run.scores["metric"] == "iou"].astype({"value": "float64"})
    return scores.groupby(["sample_id", "instance_id", "condition"])["value"].mean()


def test_differences_are_of_the_second_less_the_first(pair: tuple[Run, Run]) -> None:
    found = compare(*pair)
    gains = (object_means(pair[1]) - object_means(pair[0])).groupby("condition").mean()
    rows = found.differences[found.differences["statistic"] == "miou"].set_index("condition")
    for condition, gain in zip(gains.index, gains, strict=True):
        row = rows.loc[str(condition)]
        assert row["difference"] == pytest.approx(gain, abs=1e-7)
        assert row["after"] - row["before"] == pytest.approx(gain, abs=1e-7)
        assert 0 < row["low"] < gain < row["high"]
        assert not row["is_tie"]
    assert (rows["p_holm"] >= rows["p"]).all()


def test_the_other_way_round_the_signs_change(pair: tuple[Run, Run]) -> None:
    one, other = compare(*pair).differences, compare(*reversed(pair)).differences
    np.testing.assert_allclose(one["difference"], -other["difference"])
    np.testing.assert_allclose(one["low"], -other["high"])
    np.testing.assert_allclose(one["p"], other["p"])


def test_alike_runs_tie(pair: tuple[Run, Run], tmp_path: Path) -> None:
    first, _ = pair
    same = RUN.but(device="cuda").store(tmp_path)  # scores depend on the label alone
    found = compare(first, same)
    assert found.differences["is_tie"].all()
    assert (found.differences["p"] == 1).all()
    assert (found.objects["gain"] == 0).all()
    assert len(comparison_tables(found, count=3)) == 1


def test_objects_stand_in_order_of_their_gain(pair: tuple[Run, Run]) -> None:
    found = compare(*pair)
    gains = object_means(pair[1]) - object_means(pair[0])
    assert len(found.objects) == len(gains)
    assert found.objects["gain"].is_monotonic_decreasing
    top = found.objects.iloc[0]
    key = (top["sample_id"], top["instance_id"], top["condition"])
    assert top["gain"] == pytest.approx(gains.max(), abs=1e-7)
    assert gains[key] == pytest.approx(gains.max(), abs=1e-7)
    assert top["category"] == f"kind {top['instance_id']}"


def test_tables_name_each_object_once(pair: tuple[Run, Run]) -> None:
    differences, gained, *_ = comparison_tables(compare(*pair), count=4)
    assert differences.footnotes[0] == "A: sam vit_b. B: stable-sam vit_b."
    assert {row[1] for row in differences.rows} == {"mIoU", "mBIoU", "mSF"}
    assert [row[1] for row in differences.rows if row[0] == "exact-box"] == ["mIoU", "mBIoU"]
    assert {row[-1] for row in differences.rows} <= {"B", "tie"}
    assert len({row[:2] for row in gained.rows}) == len(gained.rows) == 4


def test_other_data_or_protocols_are_refused(pair: tuple[Run, Run], tmp_path: Path) -> None:
    other = MadeUp(segmenter=STABLE, protocol=described("box-shift")).store(tmp_path)
    with pytest.raises(RunError, match="cannot be paired: noisy-box on scenes/6 and box-shift on"):
        compare(pair[0], other)
    short = RUN.but(segmenter=SAM, limit=3, n_samples=3).store(tmp_path)
    with pytest.raises(RunError, match="cannot be paired"):
        compare(pair[1], short)
