"""Disks that are full, files that may not grow, folders that nobody can write: really so."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from samrobust.runs.store import read_run
from tests.faults import (
    Step,
    assert_same_tables,
    limit_file_size,
    make_read_only,
    mount_disk,
    own_mounts,
    run,
)
from tests.test_faults_kills import EVAL, SHORT, TRAIN, learned
from tests.trainings import same_tensors

LARGE = 2**26
RESULTS = ("--out", "disk/results")
WEIGHTS = ("--out", "disk/stable-sam.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an evaluation and a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("disk") / "whole"
    folder.with_name("short.toml").write_text(SHORT)
    assert run(folder, EVAL).code == 0
    assert run(folder, TRAIN).code == 0
    return folder


@pytest.fixture
def mounts(whole: Path) -> tuple[Step, ...]:
    """Return the steps that mount an empty disk of 1 MiB; skip where that is not allowed."""
    steps = own_mounts, partial(mount_disk, Path("disk"), 2**20)
    if run(whole.with_name("mounts"), *steps).code != 0:
        pytest.skip("needs to mount, which is not allowed here")
    return steps


def copy_out() -> None:
    """Copy what is on the disk to where it stays when the disk is gone."""
    shutil.copytree("disk", "copy", dirs_exist_ok=True)


def n_bytes(path: Path) -> int:
    """Return the bytes of a file, or of the files below a folder."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)


def resized(size: int) -> Step:
    return partial(mount_disk, Path("disk"), size, again=True)


def test_an_evaluation_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    whole: Path, mounts: tuple[Step, ...]
) -> None:
    command = (*EVAL, *RESULTS)
    half = n_bytes(whole / "results") // 2
    folder = whole.with_name("full-eval")
    full = run(folder, *mounts, resized(half), command, copy_out, resized(LARGE), command, copy_out)
    (line,) = full.errors
    assert line.startswith("disk/results/")
    assert "cannot be written: No space left on device; what was stored before is kept" in line
    assert full.code == 0
    assert_same_tables(folder / "copy/results", whole / "results")


def test_a_training_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    whole: Path, mounts: tuple[Step, ...]
) -> None:
    command = (*TRAIN, *WEIGHTS)
    one_and_a_half = n_bytes(whole / "stable-sam-training/state.pt") * 3 // 2
    folder = whole.with_name("full-train")
    full = run(folder, *mounts, resized(one_and_a_half), command, resized(LARGE), command, copy_out)
    assert full.errors == [
        "disk/stable-sam-training/state.pt: cannot be written: No space left on device"
    ]
    assert "resuming after step 1" in full.said
    assert full.code == 0
    assert same_tensors(learned(folder / "copy"), learned(whole))


def test_a_part_that_may_not_grow_is_named_and_what_came_before_stays(whole: Path) -> None:
    (part, *_) = sorted(whole.glob("results/*/*/part-*"), key=n_bytes, reverse=True)
    folder = whole.with_name("limit-eval")
    short = run(folder, partial(limit_file_size, n_bytes(part) - 1), EVAL)
    assert short.code == 1
    (line,) = short.errors
    assert f"{part.parent.name}/{part.name}: cannot be written: File too large; what was" in line
    assert not list(folder.rglob("*.tmp"))
    (stored,) = (folder / "results").iterdir()
    assert set(read_run(stored).scores["sample_id"]) == {
        f"scene-{number:05d}" for number in range(int(part.stem[5:]))
    }
    assert run(folder, EVAL).code == 0
    assert_same_tables(folder / "results", whole / "results")


def test_a_state_that_may_not_grow_is_named(whole: Path) -> None:
    folder = whole.with_name("limit-train")
    limit = n_bytes(whole / "stable-sam-training/state.pt") - 1
    short = run(folder, partial(limit_file_size, limit), TRAIN)
    assert short.code == 1
    assert short.errors == ["stable-sam-training/state.pt: cannot be written: File too large"]
    assert run(folder, TRAIN).code == 0
    assert same_tensors(learned(folder), learned(whole))


def test_of_a_folder_that_is_read_only_runs_are_read_and_nothing_else(
    whole: Path, mounts: tuple[Step, ...]
) -> None:
    folder = whole.with_name("read-only")
    shutil.copytree(whole, folder / "disk")
    (stored,) = (folder / "disk/results").iterdir()
    closed = (mounts[0], partial(make_read_only, Path("disk")))
    report = ("report", str(stored.relative_to(folder)))
    found = run(folder, *closed, (*EVAL, *RESULTS), (*TRAIN, *WEIGHTS), report)
    assert found.errors == [
        "--out disk/results: cannot be written: Read-only file system",
        "--out disk: cannot be written: Read-only file system",
    ]
    assert found.code == 0
    assert "mIoU" in found.said
    new = run(folder, *closed, (*EVAL, "--out", "disk/new"), (*TRAIN, "--out", "disk/new.st"))
    assert new.code == 1
    assert [line.partition(": ")[2] for line in new.errors] == [
        "cannot be written: Read-only file system",
        "cannot be written: Read-only file system",
    ]
