"""What `benchmarks.gpu` says of a device; `nox -s gpu_dry_run` runs all of it."""

import json
from pathlib import Path

import pytest
import typer

from benchmarks import gpu
from benchmarks.gpu import Report, fast, right

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


@pytest.mark.parametrize("n_ways", [0, 1, 2, 3])
def test_ways_that_were_measured_before_one_failed_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_ways: int
) -> None:
    part = {"flops": 1.0, "bytes": 1.0}
    seconds = {"encode": 1.0, "predict": 1.0, "metrics": 1.0, "total": 4.0, "images": 1.0}
    figures = {**seconds, "prompts": 8.0, "peak_gib": 1.0, "busy": 0.75, "draw_a_prompt": 1e-4}
    found = {
        "work": dict.fromkeys(("encode", "predict", "metrics"), part),
        "samrobust": figures,
        "careful": figures,
    }
    lines = [json.dumps({"way": way, "found": found[way]}) for way in list(found)[:n_ways]]
    monkeypatch.setattr(gpu, "_lines", lambda *_: (lines, "failed with 1"))
    monkeypatch.setattr(gpu, "peaks_of", lambda *_: {"float32": 1e9, "copy": 1e9})
    report = Report(tmp_path, gpu.about("cpu"))
    fast(report, "cpu", lambda: 1.0, tiny=True)
    text = report.markdown()
    assert text.count("## sam-nano in float32 on cpu") == (n_ways > 0)
    assert ("samrobust 2 (busy 75%)" in text) == (n_ways > 1)
    assert ("| predict |" in text) == (n_ways > 2)
    assert "\n\n\n" not in text
    last = list(found)[n_ways - 1] if n_ways else "the start"
    assert report.missing == [f"sam-nano, ways after '{last}': failed with 1"]
