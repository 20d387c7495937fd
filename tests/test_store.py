import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import samrobust.runs.store
from samrobust.errors import RunError
from samrobust.runs.manifest import RunManifest, Score, run_name
from samrobust.runs.sharing import Shard
from samrobust.runs.store import RunWriter, read_run
from samrobust.types import DatasetInfo, SegmenterInfo

MANIFEST = RunManifest(
    protocol={
        "name": "noisy-box",
        "version": 1,
        "seed": 0,
        "selection": "single",
        "metrics": ["iou"],
        "conditions": [
            {"name": "box", "degradation": "box-noise", "parameters": {}, "trials": 9, "level": 0.4}
        ],
        "sha256": "p",
    },
    reported=[],
    dataset=DatasetInfo("coco", "val2017", "f", group="g", group_members=("coco", "x")),
    segmenter=SegmenterInfo("sam", frozenset({"points", "box"}), variant="vit_b"),
    n_samples=4,
    limit=None,
    trials=None,
    device="cpu",
    constants={"boundary_dilation_ratio": 0.02},
    versions={"torch": "2"},
    command="samrobust eval",
    created="2026-01-01T00:00:00+00:00",
)


def _scores(sample_id: str, n: int = 3) -> list[Score]:
    return [Score(sample_id, "0", "box", trial, "iou", 0.25 * trial, "h") for trial in range(n)]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with RunWriter(tmp_path, MANIFEST) as writer:
        for sample_id in ("a", "b"):
            writer.write(sample_id, _scores(sample_id))
        writer.fail("c", "c.jpg: cannot be decoded")
    run = read_run(writer.folder)
    assert run.manifest == MANIFEST
    assert run.scores["value"].tolist() == [0, 0.25, 0.5] * 2
    assert run.scores["sample_id"].tolist() == ["a"] * 3 + ["b"] * 3
    assert run.failures == {"c": "c.jpg: cannot be decoded"}
    assert run.n_missing == 1


def test_what_was_left_out_stays_on_record_and_is_counted(tmp_path: Path) -> None:
    with RunWriter(tmp_path, MANIFEST) as writer:
        writer.leave_out("a", ["no area", "no area"])
        writer.write("a", _scores("a"))
    assert read_run(writer.folder).manifest.n_objects_left_out == 2
    with RunWriter(tmp_path, MANIFEST, Shard(0, 2)) as writer:
        writer.leave_out("b", ["no object"])
    with RunWriter(tmp_path, MANIFEST) as writer:
        writer.leave_out("c", ["no area"])
    run = read_run(writer.folder)
    assert run.left_out == {"a": ["no area"] * 2, "b": ["no object"], "c": ["no area"]}
    assert run.manifest.n_objects_left_out == 4
    assert run_name(run.manifest) == writer.folder.name


def test_folders_tell_two_data_sets_of_one_format_apart(tmp_path: Path) -> None:
    here, there = (
        replace(MANIFEST, dataset=replace(MANIFEST.dataset, folder=folder, fingerprint=folder))
        for folder in ("coco128", "coco_more")
    )
    for manifest in (here, there):
        with RunWriter(tmp_path, manifest) as writer:
            writer.write("a", _scores("a"))
    names = sorted(folder.name.rpartition("--")[0] for folder in tmp_path.iterdir())
    assert names == [
        "noisy-box--coco-val2017-in-coco128--sam-vit_b",
        "noisy-box--coco-val2017-in-coco_more--sam-vit_b",
    ]


def test_a_run_goes_on_where_its_data_were_moved_or_not_named(tmp_path: Path) -> None:
    with RunWriter(tmp_path, MANIFEST) as before:
        before.write("a", _scores("a"))
    moved = replace(MANIFEST, dataset=replace(MANIFEST.dataset, folder="elsewhere"))
    with RunWriter(tmp_path, moved) as writer:
        assert writer.folder == before.folder
        assert writer.done == {"a"}
    assert run_name(moved) != before.folder.name


def test_keys_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    with RunWriter(tmp_path, MANIFEST) as writer:
        writer.write("a", _scores("a"))
    file = writer.folder / "manifest.json"
    plain = json.loads(file.read_text())
    for table in (plain, plain["dataset"], plain["segmenter"]):
        table["surplus"] = {"of": "a later version"}
    file.write_text(json.dumps(plain), encoding="utf-8-sig")
    assert read_run(writer.folder).manifest == MANIFEST


def test_a_version_that_changes_no_score_resumes_the_runs_of_the_last_that_did() -> None:
    versions = ({"samrobust": name, "torch": "2"} for name in ("0.1.0", "0.2.0", "9.9"))
    names = {run_name(replace(MANIFEST, versions=version)) for version in versions}
    assert len(names) == 1


def test_the_name_says_what_it_is_and_changes_with_all_that_can_change_a_number() -> None:
    name = run_name(MANIFEST)
    assert name.startswith("noisy-box--coco-val2017--sam-vit_b--")
    same = replace(MANIFEST, command="again", created="later", reported=[{"value": 1}])
    assert run_name(same) == name
    changes: list[dict[str, Any]] = [
        {"protocol": {**MANIFEST.protocol, "sha256": "q"}},
        {"limit": 3},
        {"trials": 3},
        {"device": "cuda"},
        {"versions": {"torch": "3"}},
        {"constants": {"boundary_dilation_ratio": 0.01}},
        {"dataset": replace(MANIFEST.dataset, fingerprint="g")},
        {"segmenter": replace(MANIFEST.segmenter, frame="squash")},
        {"segmenter": replace(MANIFEST.segmenter, checkpoint_sha256="1")},
    ]
    names = {run_name(replace(MANIFEST, **change)) for change in changes}
    assert len(names | {name}) == len(changes) + 1


def test_going_on_knows_what_is_stored_and_forgets_failures_that_are_mended(tmp_path: Path) -> None:
    with RunWriter(tmp_path, MANIFEST) as writer:
        writer.write("a", _scores("a"))
        writer.fail("b", "broken")
    with RunWriter(tmp_path, MANIFEST) as writer:
        assert writer.done == {"a"}
        writer.write("b", _scores("b"))
    assert read_run(writer.folder).failures == {}
    assert len(list((writer.folder / "scores").iterdir())) == 2


def test_a_killed_run_loses_no_part_and_doubles_nothing(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, pathlib, signal, sys
        import samrobust.runs.store
        from tests.test_store import MANIFEST, _scores
        samrobust.runs.store.FLUSH_SECONDS = -1
        with samrobust.runs.store.RunWriter(pathlib.Path(sys.argv[1]), MANIFEST) as writer:
            for sample_id in ("a", "b"):
                writer.write(sample_id, _scores(sample_id))
            writer._wait()
            samrobust.runs.store.FLUSH_SECONDS = 1000
            writer.write("c", _scores("c"))
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=Path.cwd(), check=False
    )
    assert done.returncode == -signal.SIGKILL
    with RunWriter(tmp_path, MANIFEST) as writer:
        assert writer.done == {"a", "b"}
        for sample_id in ("c", "d"):
            writer.write(sample_id, _scores(sample_id))
    run = read_run(writer.folder)
    assert run.n_missing == 0
    assert sorted(run.scores["sample_id"]) == sorted(["a", "b", "c", "d"] * 3)


def test_scores_do_not_depend_on_the_order_in_which_images_were_stored(tmp_path: Path) -> None:
    tables = []
    for order in (("b", "a", "c"), ("c", "b", "a")):
        with RunWriter(tmp_path / order[0], MANIFEST) as writer:
            for sample_id in order:
                writer.write(sample_id, _scores(sample_id))
        scores = read_run(writer.folder).scores
        tables.append(scores.sort_values(["sample_id", "trial"], ignore_index=True))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert tables[0]["sample_id"].tolist() == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def test_an_interrupted_run_writes_what_it_has(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, MANIFEST)
    writer.write("a", _scores("a"))
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert set(read_run(writer.folder).scores["sample_id"]) == {"a"}


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    with (
        RunWriter(tmp_path, MANIFEST),
        pytest.raises(RunError, match="another process is writing this run"),
    ):
        RunWriter(tmp_path, MANIFEST)


def test_half_written_files_are_removed_or_named(tmp_path: Path) -> None:
    with RunWriter(tmp_path, MANIFEST) as writer:
        writer.write("a", _scores("a"))
    unfinished = writer.folder / "scores/part-00001.parquet.tmp"
    unfinished.write_bytes(b"PAR1")
    with RunWriter(tmp_path, MANIFEST):
        assert not unfinished.exists()
    part = writer.folder / "scores/part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    for read in (lambda: read_run(writer.folder).scores, lambda: RunWriter(tmp_path, MANIFEST)):
        with pytest.raises(RunError, match=r"part-00000\.parquet: cannot be read, perhaps it was"):
            read()


def test_a_full_disk_is_one_line_and_keeps_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunWriter(tmp_path, MANIFEST) as writer:
        writer.write("a", _scores("a"))

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28), descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(RunError, match=r"part-00001.*: No space left on device; what was stored"),
        RunWriter(tmp_path, MANIFEST) as writer,
    ):
        writer.write("b", _scores("b"))
    monkeypatch.undo()
    assert set(read_run(writer.folder).scores["sample_id"]) == {"a"}
    assert not list(writer.folder.rglob("*.tmp"))


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"manifest\.json: cannot be read: No such file"):
        read_run(tmp_path)
    for content, message in (
        ("{", "is not JSON"),
        ("{}", "is not the manifest of a run"),
        ('{"format": 99}', "is of another format than 1"),
    ):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(RunError, match=message):
            read_run(tmp_path)
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        RunWriter(tmp_path / "manifest.json", MANIFEST)


def test_many_rows_are_flushed_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samrobust.runs.store, "FLUSH_ROWS", 5)
    with RunWriter(tmp_path, MANIFEST) as writer:
        for sample_id in ("a", "b", "c"):
            writer.write(sample_id, _scores(sample_id))
        writer._wait()
        assert len(list((writer.folder / "scores").iterdir())) == 1
    assert len(list((writer.folder / "scores").iterdir())) == 2


def test_no_image_waits_for_the_disk_and_parts_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samrobust.runs.store, "FLUSH_SECONDS", -1.0)
    may_go_on, fsync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        assert may_go_on.wait(60)
        fsync(descriptor)

    with RunWriter(tmp_path, MANIFEST) as writer:
        monkeypatch.setattr(os, "fsync", slow)
        writer.write("b", _scores("b"))  # returns, though no part can be written yet
        assert not list((writer.folder / "scores").glob("*.parquet"))
        may_go_on.set()
        writer.write("a", _scores("a"))
    assert read_run(writer.folder).scores["sample_id"].tolist() == ["b"] * 3 + ["a"] * 3


def test_what_hinders_a_part_is_raised_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samrobust.runs.store, "FLUSH_SECONDS", -1.0)
    writer = RunWriter(tmp_path, MANIFEST)
    (writer.folder / "scores").rmdir()
    (writer.folder / "scores").touch()
    writer.write("a", _scores("a"))
    with pytest.raises(RunError) as caught:
        writer.write("b", _scores("b"))
    writer.__exit__(RunError, caught.value, None)
    assert str(caught.value) == f"{writer.folder / 'scores'}: cannot be written: File exists"
    (writer.folder / "scores").unlink()
    with RunWriter(tmp_path, MANIFEST) as again:  # the lock was given back
        assert not again.done
