"""What `benchmarks.gpu` says of a device; `nox -s gpu_dry_run` runs all of it."""

import json
from pathlib import Path

import pytest
import typer

from benchmarks import gpu
from benchmarks.gpu import Report, right

GOOD = {"check": "masks", "largest": 1e-4, "allowed": 1e-3, "of": "pixels", "note": ""}


def test_what_does_not_fit_into_the_minutes_is_listed(tmp_path: Path) -> None:
    report = Report(tmp_path, gpu.about("cpu"))
    right(report, "cpu", lambda: 0.0, tiny=True)
    report.write()
    assert report.missing == ["checks after 'the start': did not fit into the minutes"]
    assert report.missing[0] in (tmp_path / "gpu.md").read_text()
    assert json.loads((tmp_path / "gpu.json").read_text())["not_measured"] == report.missing


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [({}, "ok"), ({"largest": 2e-3}, "TOO LARGE"), ({"largest": float("nan")}, "TOO LARGE")],
)
def test_a_difference_is_judged_by_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, float], verdict: str
) -> None:
    def found(report: Report, *_: object, **__: object) -> None:
        report.right.append({**GOOD, **changed})

    monkeypatch.setattr(gpu, "right", found)
    for part in ("fast", "trains"):
        monkeypatch.setattr(gpu, part, lambda *_, **__: None)
    try:
        gpu.main(out=tmp_path, device="cpu")
        code = 0
    except typer.Exit as error:
        code = error.exit_code
    assert code == (verdict != "ok")
    assert f"| {verdict} |" in (tmp_path / "gpu.md").read_text()
