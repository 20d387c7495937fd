"""A package that registers a segmenter, a data set and a degradation, as the guide shows it."""

import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from samrobust.runs.store import read_run
from tests.conftest import Shell

ROOT = Path(__file__).parents[1]
PACKAGE = Path(__file__).parent / "plugin"
SHOWN = (
    "samrobust_example/segmenter.py",
    "samrobust_example/dataset.py",
    "samrobust_example/degradation.py",
    "pyproject.toml",
    "looser-box.toml",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the package is installed, without the network."""
    target, built = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("built")
    command = (
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        built,
    )
    subprocess.run(command, check=True, capture_output=True, cwd=PACKAGE)
    (wheel,) = built.iterdir()
    shutil.unpack_archive(wheel, target, "zip")
    return target


def samrobust(installed: Path, folder: Path, *arguments: str | Path) -> str:
    """Run a command line in a folder, where the package is installed, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "samrobust", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_what_a_package_registers_is_evaluated_by_name(installed: Path, tmp_path: Path) -> None:
    protocol = PACKAGE / "looser-box.toml"
    names = ("--segmenter", "threshold", "--segmenter", "ellipse", "--dataset", "discs")
    out = samrobust(
        installed, tmp_path, "eval", "--protocol", protocol, *names, "--workers", "0", "--quiet"
    )
    assert "looser-box v1 on discs" in out
    runs = {
        run.manifest.segmenter.name: run.scores
        for run in map(read_run, (tmp_path / "results").iterdir())
    }
    assert set(runs) == {"threshold", "ellipse"}
    scores = runs["threshold"]
    assert set(scores["sample_id"]) == {"12", "16", "20"}
    assert set(scores["condition"]) == {"looser-4", "looser-8"}
    ious = scores[scores["metric"] == "iou"]
    assert len(ious) == 3 * 2 * 20
    assert (ious["value"] == 1).all()  # the disc is all that is bright
    assert scores[scores["metric"] == "iou"]["prompt_hash"].nunique() == 3 * 2 * 20
    assert runs["ellipse"][runs["ellipse"]["metric"] == "iou"]["value"].mean() < 0.95


def test_what_a_run_depends_on_is_stored_whether_or_not_a_plugin_says_so(
    installed: Path, tmp_path: Path
) -> None:
    for content in ("first", "second"):
        (tmp_path / "weights.pth").write_text(content)  # the info of `threshold` ignores it
        samrobust(
            *(installed, tmp_path, "eval", "--protocol", "gt-box", "--dataset", "discs"),
            *("--segmenter", "threshold", "--checkpoint", "weights.pth", "--workers", "0"),
        )
    stored = [read_run(run).manifest.segmenter for run in (tmp_path / "results").iterdir()]
    assert len(stored) == 2
    assert {each.label for each in stored} == {"threshold weights"}
    assert len({each.settings["given_checkpoint"] for each in stored}) == 2
    source = (PACKAGE / "samrobust_example" / "segmenter.py").read_bytes()
    assert {each.settings["source_sha256"] for each in stored} == {sha256(source).hexdigest()}
    assert {each.settings["distribution"] for each in stored} == {"samrobust-example 1.0"}


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("segmenters", "threshold  plug-in samrobust_example.segmenter:build of samrobust-example"),
        ("datasets", "discs  plug-in samrobust_example.dataset:build of samrobust-example"),
        (
            "degradations",
            "looser-box  plug-in samrobust_example.degradation:LooserBox of samrobust-example",
        ),
    ],
)
def test_what_a_package_registers_is_listed(
    installed: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, kind: str, line: str
) -> None:
    monkeypatch.syspath_prepend(installed)
    found = shell("ls", kind).out
    assert line in [" ".join(row.split()).replace(" ", "  ", 1) for row in found.splitlines()]


@pytest.mark.parametrize("name", SHOWN)
def test_the_guide_shows_the_package_as_it_is(name: str) -> None:
    guide = (ROOT / "docs" / "guides" / "plugins.md").read_text()
    blocks = re.findall(r"```\w+\n(.*?)```", guide, flags=re.DOTALL)
    assert (PACKAGE / name).read_text() in blocks
