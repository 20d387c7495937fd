"""How much memory the worst files of strangers take, one after the other in one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import hostile as put
from tests.hostile import Put

MOST_MIB = 1024
"""Beyond what an ordinary evaluation takes."""
EVAL = "eval --protocol gt-box --workers 0 --dataset"
FOLDER = f"{EVAL} folder --data-root . --segmenter ellipse"
COCO = f"{EVAL} coco --data-root . --split val --segmenter ellipse"
CASES: dict[str, tuple[Put, str, int]] = {
    "an ordinary evaluation": (put.nothing, f"{EVAL} scenes --split 2", 0),
    "a picture of 10^10 pixels": (put.picture(put.png(100_000, 100_000)), FOLDER, 1),
    "a text in a picture": (put.picture(put.png(chunks=put.text_bomb())), FOLDER, 1),
    "a contour": (put.coco(segmentation=[[0, 0, 9e7, 0, 0, 9e7]]), COCO, 1),
    "a run length": (put.coco(segmentation={"size": [40, 61], "counts": "o" * 10**7}), COCO, 1),
    "an image as JSON says": (put.coco(image={"width": 10**12, "height": 10**12}), COCO, 1),
    "a key": (put.text("a" + ".a" * 100_000 + " = 1"), "eval --protocol own.toml", 1),
    "points": (put.protocol("count = 3", "count = 1000000000"), "eval --protocol own.toml", 1),
    "images": (put.nothing, "eval --dataset scenes --split 1000000000000", 1),
    "rows": (put.run_with_scores(put.many_rows), "report run", 1),
    "a trial": (put.run_with_scores(put.with_column("trial", 10**9)), "report run", 1),
    "a panorama": (put.panorama, f"{FOLDER} --segmenter sam-nano", 0),
}
SCRIPT = """
import json, os, resource, sys
from samrobust.cli import main
for folder, command in json.loads(sys.argv[1]):
    os.chdir(folder)
    sys.argv = ["samrobust", *command.split()]
    code = 0
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("measured", code, peak // 1024, flush=True)
"""


def test_the_worst_files_take_a_bounded_amount_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = []
    for number, (on_disk, command, _) in enumerate(CASES.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        on_disk()
        todo.append((str(folder), command))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(todo)],
        cwd=Path(__file__).parents[1],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("measured ")]
    assert [int(code) for _, code, _ in rows] == [code for *_, code in CASES.values()], done.stderr
    assert "Traceback" not in done.stderr
    peaks = dict(zip(CASES, (int(peak) for *_, peak in rows), strict=True))
    assert max(peaks.values()) - peaks["an ordinary evaluation"] < MOST_MIB, peaks
