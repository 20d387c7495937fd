"""Tolerances between two runs: what is measured, stored and shown."""

import dataclasses
import json
from pathlib import Path

import pytest

from samrobust.errors import RunError
from samrobust.report.compare import compare, verdict_of
from samrobust.report.precision import LIMITS, Verdict, write_verdict
from samrobust.report.summary import summarise
from samrobust.report.tables import terminal_tables
from samrobust.runs.store import Run
from tests.conftest import Shell
from tests.runs import SAM, MadeUp, described, member

NOISY = described("noisy-box", conditions=("exact-box", "box-noise-0.2", "box-noise-0.4"))
EXACT = MadeUp(protocol=NOISY)
HALF = dataclasses.replace(SAM, dtype="bfloat16")


def mean_of(run: Run, metric: str, condition: str) -> float:
    scores = run.scores
    chosen = (scores["metric"] == metric) & (scores["condition"] == condition)
    objects = scores[chosen].astype({"value": "float64"})
    return float(
        objects.groupby(["sample_id", "instance_id"], observed=True)["value"].mean().mean()
    )


def footnotes(*runs: Run) -> str:
    (table,) = terminal_tables(summarise(runs))
    return "\n".join(table.footnotes)


def verdict_between(folder: Path, accuracy: float) -> tuple[Run, Run, Verdict]:
    exact = EXACT.store(folder)
    half = EXACT.but(segmenter=HALF, accuracy=accuracy).store(folder)
    return exact, half, verdict_of(compare(exact, half), half)


def test_the_largest_difference_of_each_statistic_decides(tmp_path: Path) -> None:
    exact, half, found = verdict_between(tmp_path, 0.79)
    for statistic, metric in {"miou": "iou", "mbiou": "boundary-iou", "msf": "stability"}.items():
        names = [row["name"] for row in NOISY["conditions"]][1 if metric == "stability" else 0 :]
        expected = {
            name: mean_of(half, metric, name) - mean_of(exact, metric, name) for name in names
        }
        largest = max(expected, key=lambda name: abs(expected[name]))
        assert found.conditions[statistic] == largest
        assert found.differences[statistic] == pytest.approx(expected[largest], abs=1e-9)
        assert abs(found.differences[statistic]) > LIMITS[statistic]
    assert not found.passed
    assert (found.n_images, found.n_objects) == (6, 12)


def test_equal_runs_pass(tmp_path: Path) -> None:
    assert verdict_between(tmp_path, 0.8)[2].passed


@pytest.mark.parametrize("statistic", LIMITS)
def test_each_limit_is_one(tmp_path: Path, statistic: str) -> None:
    found = verdict_between(tmp_path, 0.8)[2]
    for factor, passed in ((0.99, True), (-0.99, True), (1.01, False), (-1.01, False)):
        differences = {**found.differences, statistic: factor * LIMITS[statistic]}
        assert dataclasses.replace(found, differences=differences).passed == passed


def test_a_run_in_reduced_precision_says_how_far_it_is(tmp_path: Path) -> None:
    exact, half, found = verdict_between(tmp_path, 0.79)
    unknown = "sam vit_b: image encoder in bfloat16; how far that is from float32 was not measured"
    assert unknown in footnotes(half)
    assert "bfloat16" not in footnotes(exact)
    path = write_verdict(found, half)
    assert path.parent == half.folder.parent
    assert "sam vit_b: image encoder in bfloat16; NOT WITHIN the tolerance: largest" in footnotes(
        half
    )
    assert f"mIoU {100 * found.differences['miou']:+.2f}" in footnotes(half)
    assert "(noisy-box on scenes/6, 6 images)" in footnotes(half)
    both = footnotes(exact, half)
    assert "sam vit_b (bfloat16): image encoder in bfloat16; NOT WITHIN the" in both
    assert "float32: image" not in both


def test_a_verdict_about_other_weights_or_device_says_nothing(tmp_path: Path) -> None:
    _, half, found = verdict_between(tmp_path, 0.8)
    write_verdict(found, half)
    others = [
        EXACT.but(segmenter=dataclasses.replace(HALF, checkpoint_sha256="c" * 64)),
        EXACT.but(segmenter=dataclasses.replace(HALF, dtype="float16")),
        EXACT.but(segmenter=HALF, device="cuda"),
    ]
    for other in others:
        assert "was not measured" in footnotes(other.store(tmp_path))


def test_a_verdict_of_the_same_data_is_shown_before_a_newer_one(tmp_path: Path) -> None:
    _, half, found = verdict_between(tmp_path, 0.8)
    elsewhere = EXACT.but(segmenter=HALF, dataset=member("coift")).store(tmp_path)
    write_verdict(dataclasses.replace(found, dataset="coift", created="2030"), elsewhere)
    assert "on coift, 6 images" in footnotes(half)
    write_verdict(found, half)
    assert "on scenes/6, 6 images" in footnotes(half)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"format": 2}', "is of another format than 1"),
        ('{"format": 1}', "is not a verdict"),
    ],
)
def test_a_broken_verdict_is_named(tmp_path: Path, content: str, message: str) -> None:
    _, half, found = verdict_between(tmp_path, 0.8)
    write_verdict(found, half).write_text(content)
    with pytest.raises(RunError, match=rf"gate--.*\.json: {message}"):
        summarise([half])


def test_a_gate_that_0_1_0_stored_is_read(tmp_path: Path) -> None:
    _, half, found = verdict_between(tmp_path, 0.8)
    path = write_verdict(found, half)
    plain = json.loads(path.read_text())
    assert plain.pop("limits") == LIMITS
    path.write_text(json.dumps({**plain, "command": "samrobust gate"}))
    assert "image encoder in bfloat16; within the tolerance" in footnotes(half)


def test_the_command_measures_and_the_report_tells(shell: Shell) -> None:
    exact, half, _ = verdict_between(Path("runs"), 0.79)
    done = shell("compare", exact.folder, half.folder, "--tolerance", "default")
    assert done.code == 1
    assert "NOT WITHIN the tolerance" in done.out
    (stored,) = Path("runs").glob("gate--*.json")
    assert json.loads(stored.read_text())["command"].endswith("--tolerance default")
    report = " ".join(shell("report", *Path("runs").iterdir()).out.split())
    assert "image encoder in bfloat16; NOT WITHIN the tolerance" in report
    done = shell("compare", exact.folder, half.folder, "--tolerance", "100")
    assert done.code == 0
    assert "within the tolerance" in done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_only_a_verdict_about_precision_is_stored(shell: Shell) -> None:
    exact, half, _ = verdict_between(Path("runs"), 0.8)
    other = EXACT.but(segmenter=dataclasses.replace(SAM, variant="vit_l")).store(Path("runs"))
    assert shell("compare", half.folder, exact.folder, "--tolerance", "100").code == 0
    assert shell("compare", exact.folder, other.folder, "--tolerance", "100").code == 0
    assert not list(Path("runs").glob("gate--*.json"))


@pytest.mark.parametrize("tolerance", ["x", "-1", "nan"])
def test_a_tolerance_is_a_number_of_points(shell: Shell, tolerance: str) -> None:
    refusal = shell.refuses("compare", "a", "b", f"--tolerance={tolerance}")
    assert refusal == f"--tolerance must be 'default' or points in [0, 100], got '{tolerance}'"
