"""Gates of reduced precision: what is measured, stored and shown."""

import dataclasses
import json
from pathlib import Path

import pytest

from samrobust.errors import RunError
from samrobust.report.compare import gate
from samrobust.report.precision import LIMITS, Gate, write_gate
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


def gate_of(folder: Path, accuracy: float) -> tuple[Run, Run, Gate]:
    exact = EXACT.store(folder)
    half = EXACT.but(segmenter=HALF, accuracy=accuracy).store(folder)
    return exact, half, gate(exact, half, command="samrobust gate")


def test_the_largest_difference_of_each_statistic_decides(tmp_path: Path) -> None:
    exact, half, found = gate_of(tmp_path, 0.79)
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
    assert gate_of(tmp_path, 0.8)[2].passed


@pytest.mark.parametrize("statistic", LIMITS)
def test_each_limit_is_one(tmp_path: Path, statistic: str) -> None:
    found = gate_of(tmp_path, 0.8)[2]
    for factor, passed in ((0.99, True), (-0.99, True), (1.01, False), (-1.01, False)):
        differences = {**found.differences, statistic: factor * LIMITS[statistic]}
        assert dataclasses.replace(found, differences=differences).passed == passed


def test_a_run_in_reduced_precision_says_what_its_gate_measured(tmp_path: Path) -> None:
    exact, half, found = gate_of(tmp_path, 0.79)
    unknown = "sam vit_b: image encoder in bfloat16; how far that is from float32 was not measured"
    assert unknown in footnotes(half)
    assert "bfloat16" not in footnotes(exact)
    path = write_gate(found, half)
    assert path.parent == half.folder.parent
    assert "sam vit_b: image encoder in bfloat16; its gate FAILED: largest" in footnotes(half)
    assert f"mIoU {100 * found.differences['miou']:+.2f}" in footnotes(half)
    assert "(noisy-box on scenes/6, 6 images)" in footnotes(half)
    both = footnotes(exact, half)
    assert "sam vit_b (bfloat16): image encoder in bfloat16; its gate FAILED" in both
    assert "float32: image" not in both


def test_a_gate_of_other_weights_or_device_says_nothing(tmp_path: Path) -> None:
    _, half, found = gate_of(tmp_path, 0.8)
    write_gate(found, half)
    others = [
        EXACT.but(segmenter=dataclasses.replace(HALF, checkpoint_sha256="c" * 64)),
        EXACT.but(segmenter=dataclasses.replace(HALF, dtype="float16")),
        EXACT.but(segmenter=HALF, device="cuda"),
    ]
    for other in others:
        assert "was not measured" in footnotes(other.store(tmp_path))


def test_a_gate_of_the_same_data_is_shown_before_a_newer_one(tmp_path: Path) -> None:
    _, half, found = gate_of(tmp_path, 0.8)
    elsewhere = EXACT.but(segmenter=HALF, dataset=member("coift")).store(tmp_path)
    write_gate(dataclasses.replace(found, dataset="coift", created="2030"), elsewhere)
    assert "on coift, 6 images" in footnotes(half)
    write_gate(found, half)
    assert "on scenes/6, 6 images" in footnotes(half)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a gate"),
        ("[]", "is not a gate"),
        ('{"format": 2}', "is of another format than 1"),
        ('{"format": 1}', "is not a gate"),
    ],
)
def test_a_broken_gate_is_named(tmp_path: Path, content: str, message: str) -> None:
    _, half, found = gate_of(tmp_path, 0.8)
    write_gate(found, half).write_text(content)
    with pytest.raises(RunError, match=rf"gate--.*\.json: {message}"):
        summarise([half])


def test_the_command_measures_and_the_report_tells(shell: Shell) -> None:
    words = ("--dataset", "scenes", "--split", "2x64x48", "--workers", "0", "--quiet")
    done = shell("gate", *words, "--trials", "2", "--dtype", "bfloat16", "--out", "runs")
    (stored,) = Path("runs").glob("gate--*.json")
    found = json.loads(stored.read_text())
    worst = {name: abs(value) / LIMITS[name] for name, value in found["differences"].items()}
    assert set(worst) == set(LIMITS)
    assert done.code == (0 if max(worst.values()) <= 1 else 1)
    assert f"bfloat16  {100 * found['differences']['miou']:+.2f}" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    report = " ".join(shell("report", *Path("runs").iterdir()).out.split())
    assert "image encoder in bfloat16; its gate" in report


def test_what_has_no_other_precision_cannot_be_gated(shell: Shell) -> None:
    words = ("gate", "--dataset", "scenes", "--split", "1x64x48", "--workers", "0", "--quiet")
    done = shell(*words, "--segmenter", "box-fill", "--dtype", "float16", "--trials", "1")
    assert done.code == 1
    assert "box-fill has no encoder that could run in float16" in done.err
    assert "cannot run" in done.out
    refusal = shell.refuses(*words, "--dtype", "float32")
    assert refusal == "--dtype float32 is the reference; allowed: bfloat16, float16"
    assert shell.refuses(*words, "--dtype", "float8").startswith("unknown dtype 'float8'")
