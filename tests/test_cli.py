import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from samrobust import __version__
from samrobust.datasets.images import read_image
from samrobust.errors import DatasetError
from samrobust.runs.store import read_masks, read_photographs, read_run
from samrobust.types import Image
from tests.conftest import Result, Shell

EVAL = ("eval", "--dataset", "folder", "--segmenter", "ellipse", "--workers", "0")


def _rows(folder: Path) -> pd.DataFrame:
    scores = read_run(folder).scores
    return scores.sort_values(list(scores.columns)).reset_index(drop=True)


def test_version_is_one_line(shell: Shell) -> None:
    assert shell("--version") == Result(0, f"samrobust {__version__}\n", "")


def test_eval_writes_the_contract_and_ends_with_the_table_and_the_place(
    shell: Shell, root: Path
) -> None:
    result = shell(*EVAL, "--data-root", root, "--trials", "2", "--quiet")
    assert result.code == 0
    assert "box-noise-0.4" in result.out
    assert max(map(len, result.out.splitlines())) <= 120
    (folder,) = Path("results").iterdir()
    *_, place, following = result.out.splitlines()
    assert place.strip() == str(folder)
    assert following == f"next: samrobust report {folder} --out report"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["segmenter"]["name"] == "ellipse"
    assert manifest["trials"] == 2
    rows = pd.concat(map(pd.read_parquet, (folder / "scores").glob("part-*.parquet")))
    assert set(rows["sample_id"]) == {"p0", "p1", "p2", "p3"}
    assert set(rows["instance_id"]) == {"0"}
    assert set(rows["metric"]) == {"iou", "boundary-iou", "stability"}
    assert set(rows[rows["metric"] == "stability"]["trial"]) == {-1}
    exact = rows[(rows["condition"] == "exact-box") & (rows["metric"] == "iou")]
    assert len(exact) == 4
    assert exact["value"].between(0.7, 0.85).all()  # an ellipse fills pi / 4 of its box


def test_protocols_say_how_human_their_boxes_are(shell: Shell) -> None:
    lines = {line.split()[0]: line for line in shell("ls", "protocols").out.splitlines()}
    assert lines["human-box"].endswith(
        "median boxes at human percentiles 0, 25, 50, 75, 90, 95, 50"
    )
    assert lines["gt-box"].endswith("human percentiles 0")
    assert "human percentiles" not in lines["points"]


def test_images_can_be_named_in_a_file(shell: Shell, root: Path) -> None:
    Path("two.txt").write_text("p1\np3\n")
    result = shell(*EVAL, "--data-root", root, "--protocol", "gt-box", "--ids", "two.txt")
    assert "folder in own, two" in result.out
    (folder,) = Path("results").iterdir()
    assert set(read_run(folder).scores["sample_id"]) == {"p1", "p3"}


def test_every_combination_runs_and_limits_are_marked(shell: Shell, root: Path) -> None:
    result = shell(
        *EVAL, "--segmenter", "box-fill", "--protocol", "gt-box", "--protocol", "box-scale",
        "--data-root", root, "--limit", "3", "--out", "runs",
    )  # fmt: skip
    assert result.code == 0
    assert len(list(Path("runs").iterdir())) == 4
    assert "first 3 images" in result.out


def test_the_same_command_does_nothing_twice_and_another_is_another_folder(
    shell: Shell, root: Path
) -> None:
    command = (*EVAL, "--data-root", root, "--protocol", "gt-box")
    shell(*command)
    (folder,) = Path("results").iterdir()
    before = {file: file.stat().st_mtime_ns for file in (folder / "scores").iterdir()}
    shell(*command)
    assert {file: file.stat().st_mtime_ns for file in (folder / "scores").iterdir()} == before
    for more in (("--limit", "2"), ("--selection", "oracle"), ("--image-batch-size", "2")):
        shell(*command, *more)
    assert len(list(Path("results").iterdir())) == 4


def test_a_run_that_was_broken_off_ends_with_the_same_rows(
    shell: Shell, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_on_p2(path: Path, **how: Any) -> Image:  # noqa: ANN401
        if path.stem == "p2":
            raise DatasetError(f"{path}: cannot be decoded")
        return read_image(path, **how)

    shell(*EVAL, "--data-root", root, "--trials", "2", "--out", "whole")
    (whole,) = Path("whole").iterdir()
    command = (*EVAL, "--data-root", root, "--trials", "2", "--out", "parts")
    with monkeypatch.context() as patched:
        patched.setattr("samrobust.datasets.folder.read_image", fail_on_p2)
        assert "p2.png: cannot be decoded" in shell.refuses(*command)
        (parts,) = Path("parts").iterdir()
        assert parts.name == whole.name
        assert read_run(parts).n_missing == 2
        assert shell(*command, "--keep-going").code == 0
        run = read_run(parts)
        assert list(run.failures) == ["p2"]
        assert run.n_missing == 0
    assert shell(*command).code == 0
    pd.testing.assert_frame_equal(_rows(parts), _rows(whole))


def _children(pid: int) -> list[int]:
    task = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in task.read_text().split()] if task.exists() else []


def test_killed_with_half_of_it_stored_it_goes_on_at_once_to_the_same_rows(
    shell: Shell, tmp_path: Path
) -> None:
    command = (
        *("eval", "--dataset", "scenes", "--split", "24x96x72", "--segmenter", "ellipse"),
        *("--protocol", "box-shift", "--trials", "2", "--quiet"),
    )
    assert shell(*command, "--workers", "0", "--out", "whole").code == 0
    script = (
        "import samrobust.runs.store; samrobust.runs.store.FLUSH_SECONDS = 0\n"
        "from samrobust.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command, "--workers", "2", "--out", "killed"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(list(tmp_path.glob("killed/*/scores/part-*"))) < 3:
        time.sleep(0.01)
    loaders = _children(process.pid)
    process.kill()
    process.wait()
    (whole,), (killed,) = (tmp_path / "whole").iterdir(), (tmp_path / "killed").iterdir()
    assert 0 < read_run(killed).n_missing < 24
    assert shell(*command, "--workers", "0", "--out", "killed").code == 0
    pd.testing.assert_frame_equal(_rows(killed), _rows(whole))
    assert loaders
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in loaders):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_combination_asked_for_twice_runs_once(shell: Shell, root: Path) -> None:
    again = ("--segmenter", "ellipse", "--protocol", "gt-box", "--protocol", "gt-box")
    assert shell(*EVAL, *again, "--data-root", root).code == 0
    assert len(list(Path("results").iterdir())) == 1


def test_a_protocol_without_a_score_is_refused(shell: Shell, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "protocols/gt-box.toml").read_text()
    (tmp_path / "own.toml").write_text(
        text.replace('"iou", "boundary-iou", "stability"', '"stability"')
    )
    line = shell.refuses("eval", "--protocol", "own.toml", "--segmenter", "ellipse")
    assert "stability needs two trials or more" in line


def test_report_prints_and_writes_what_is_asked(shell: Shell, root: Path) -> None:
    shell(*EVAL, "--data-root", root, "--segmenter", "box-fill", "--trials", "2")
    runs = sorted(Path("results").iterdir())
    assert "mIoU" in shell("report", *runs).out
    markdown = shell("report", *runs, "--format", "markdown").out
    assert markdown.partition("over trials")[0].count("| ellipse |") == 1 + 7  # at a glance
    assert shell("report", *runs, "--format", "csv").out.startswith("protocol,")
    result = shell("report", *runs, "--out", "report", "--format", "latex", "--format", "csv")
    assert result.code == 0
    endings = sorted(path.suffix for path in Path("report").iterdir())
    assert endings == [".csv"] * 3 + [".pdf"] * 5 + [".png"] * 5 + [".tex"]
    assert "tables.tex" in result.err
    assert "over trials" in shell("report", *runs, "--details").out


def test_report_writes_a_page_and_prints_exports(shell: Shell, root: Path) -> None:
    evaluation = (*EVAL, "--data-root", root, "--segmenter", "box-fill", "--trials", "2")
    assert shell(*evaluation, "--keep-masks", "all").code == 0
    runs = sorted(Path("results").iterdir())
    result = shell("report", *runs, "--format", "html", "--format", "json")
    assert result.err == "report.html: written\n"
    assert "<article" in Path("report.html").read_text()
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert {line["segmenter"]["name"] for line in lines} == {"box-fill", "ellipse"}


def test_compare_prints_what_differs_and_writes_what_each_object_gained(
    shell: Shell, root: Path
) -> None:
    shell(*EVAL, "--data-root", root, "--segmenter", "box-fill", "--trials", "2")
    runs = sorted(Path("results").iterdir())
    result = shell("compare", *runs, "--csv", "gains.csv")
    assert result.code == 0
    assert "A: box-fill. B: ellipse." in result.out
    assert "objects that lost most" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    gains = pd.read_csv("gains.csv")
    assert len(gains) == 4 * 7
    assert gains["gain"].is_monotonic_decreasing
    assert "name one" in shell.refuses("compare", runs[0], runs[0])
    assert "manifest.json: cannot be read" in shell.refuses("compare", runs[0], root)


def test_masks_are_kept_also_of_a_run_that_was_finished_without(shell: Shell, root: Path) -> None:
    command = (*EVAL, "--data-root", root, "--trials", "3", "--quiet")
    shell(*command)
    (folder,) = Path("results").iterdir()
    before = _rows(folder)
    assert read_masks(folder).empty
    shell(*command, "--keep-masks", "worst")
    worst = read_masks(folder)
    assert set(worst["sample_id"]) == {"p0", "p1", "p2", "p3"}
    shell(*command, "--keep-masks", "all")
    every = read_masks(folder)
    assert len(every) == 4 * (1 + 1 + 6 * 3) >= len(worst)
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("part-*")}
    shell(*command, "--keep-masks", "worst")  # all of them are there already
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("part-*")} == files
    pd.testing.assert_frame_equal(_rows(folder), before)
    objects = read_run(folder).objects
    assert list(objects["sample_id"]) == ["p0", "p1", "p2", "p3"]
    assert set(objects["area"]) == {32 * 26}
    assert len(read_photographs(folder)) == 4


def test_progress_is_not_drawn_where_there_is_no_terminal(shell: Shell, root: Path) -> None:
    result = shell(*EVAL, "--data-root", root, "--protocol", "gt-box")
    assert result.err == ""
    assert "\x1b" not in result.out


def test_a_run_without_scores_is_left_out_with_a_word(shell: Shell, root: Path) -> None:
    shell(*EVAL, "--data-root", root, "--protocol", "gt-box")
    (run,) = Path("results").iterdir()
    empty = shutil.copytree(run, run.with_name("empty"))
    for part in (empty / "scores").iterdir():
        part.unlink()
    result = shell("report", run, empty)
    assert (result.code, result.out.count("ellipse")) == (0, 1)
    assert "left out: results/empty holds no scores yet" in result.err
    assert "holds no scores yet" in shell.refuses("report", empty)


def test_ls_has_a_line_for_everything(shell: Shell) -> None:
    for kind, name in (
        ("protocols", "noisy-box"),
        ("recipes", "sam-nano"),
        ("segmenters", "grabcut"),
        ("datasets", "four-hq"),
        ("degradations", "border-points"),
        ("metrics", "stability"),
    ):
        lines = shell("ls", kind).out.splitlines()
        assert any(line.startswith(f"{name} ") for line in lines)
        assert all(len(line.split("  ", 1)) == 2 for line in lines)


@pytest.mark.parametrize(
    "arguments", ["--help", "train --help", "ls segmenters", "ls recipes", "--version"]
)
def test_what_is_quick_imports_neither_torch_nor_pandas_nor_matplotlib(arguments: str) -> None:
    script = (
        f"import sys; sys.argv = 'samrobust {arguments}'.split()\n"
        "from samrobust.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('imported', sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported []"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("samrobust.cli.eval", ["ls"]), ("typer.rich_utils", ["--help"]), ("torch", ["eval"])],
)
def test_ctrl_c_before_the_work_prints_one_line(module: str, arguments: list[str]) -> None:
    script = (
        "import os, runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"sys.argv = ['samrobust', *{arguments!r}]\n"
        "runpy.run_module('samrobust', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_data_check_counts_and_names_what_is_broken(shell: Shell, root: Path) -> None:
    check = ("data", "check", "--dataset", "folder", "--data-root", root)
    result = shell(*check)
    assert (result.code, result.out) == (0, "folder: 4 images, 4 objects, 0 left out, 0 broken\n")
    (root / "masks/p1.png").write_bytes(b"")
    result = shell(*check)
    assert result.code == 1
    assert "masks/p1.png: is not an image of a known format" in result.out
    assert "4 images, 3 objects, 0 left out, 1 broken" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--protocol nosy-box", "unknown protocol 'nosy-box'. Did you mean 'noisy-box'?"),
        ("--segmenter elipse", "unknown segmenter 'elipse'. Did you mean 'ellipse'?"),
        ("--dataset coc", "unknown dataset 'coc'. Did you mean 'coco'?"),
        ("--selection best", "unknown selection 'best'"),
        ("--frame square", "unknown frame 'square'"),
        ("--dtype float64", "unknown dtype 'float64'"),
        ("--trials 0", "trials must be at least 1, got 0"),
        ("--keep-masks best", "unknown kind of masks to keep 'best'. Known: all, none, worst"),
        ("--limit 0", "--limit must be at least 1, got 0"),
        ("--ids nowhere.txt", "nowhere.txt: cannot be read: No such file or directory"),
        ("--workers -1", "--workers must be at least 0, got -1"),
        ("--batch-size 0", "--batch-size must be at least 1, got 0"),
        ("--image-batch-size 0", "--image-batch-size must be at least 1, got 0"),
        ("--device cuda:99", "--device cuda:99: "),
        ("--device tpu", "unknown device 'tpu'"),
        ("--dataset coco --data-root nowhere --split val", "nowhere/val: there is no such folder"),
        ("--dataset four-hq --data-root nowhere", "DIS-VD/im: there is no such folder"),
        ("--dataset coco --dataset scenes --split a --split b --split c", "given 3 times, for 2"),
        ("--dataset coco --dataset four-hq --data-root . --split val", "val: there is no such"),
        ("--protocol points --segmenter ellipse", "protocol points: condition 'points-1' gives"),
        ("--segmenter ellipse --variant vit_b", "ellipse takes no --variant, got vit_b"),
        ("--segmenter sam --variant vit_x", "'vit_x'"),
        ("--segmenter sam --checkpoint none.pth", "none.pth"),
        ("--out /dev/null/x", "cannot be written: Not a directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(shell: Shell, arguments: str, message: str) -> None:
    assert message in shell.refuses("eval", *arguments.split())
    assert not Path("results").exists()


def test_reports_refuse_what_is_no_run_and_what_cannot_be_compared(
    shell: Shell, root: Path
) -> None:
    assert "there is no such run" in shell.refuses("report", "nowhere")
    assert "manifest.json: cannot be read" in shell.refuses("report", root)
    assert "unknown format 'htm'" in shell.refuses("report", root, "--format", "htm")
    shell(*EVAL, "--data-root", root, "--protocol", "gt-box")
    shell(*EVAL, "--data-root", root, "--protocol", "gt-box", "--selection", "oracle")
    assert "selection" in shell.refuses("report", *Path("results").iterdir())


def test_names_of_the_first_version_work_and_say_what_they_are_now(shell: Shell) -> None:
    command = ("eval", "--protocol", "gt-box", "--segmenter", "ellipse", "--split", "1x64x48")
    result = shell(*command, "--prompts-at-once=8", "--no-cache", "--images-at-once", "1")
    assert result.code == 0
    assert "--prompts-at-once is now called --batch-size" in result.err
    assert "--images-at-once is now called --image-batch-size" in result.err
    assert "--no-cache is not needed any more" in result.err
    assert shell("gate", "--segmenter", "sam-nano").err == (
        "error: gate is now: samrobust compare RUN_A RUN_B --tolerance default\n"
    )


def test_an_output_that_is_full_is_one_line(root: Path, shell: Shell) -> None:
    shell(*EVAL, "--data-root", root, "--protocol", "gt-box", "--quiet")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "samrobust", "report"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_what_a_terminal_cannot_show_is_replaced(root: Path, shell: Shell) -> None:
    shell(*EVAL, "--data-root", root, "--protocol", "gt-box", "--quiet")
    done = subprocess.run(
        [sys.executable, "-m", "samrobust", "report"],
        capture_output=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONIOENCODING": "ascii",
        },
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"ellipse" in done.stdout


def test_ls_alone_lists_its_kinds(shell: Shell) -> None:
    assert "samrobust ls protocols" in shell("ls").out.splitlines()
